"""What is kept between calls."""

import copy
import gc
import pickle
import threading
import weakref

import pytest

from widelimit import stax
from widelimit._cache import Cache, kept_with


def test_a_value_is_made_once_and_the_oldest_is_forgotten() -> None:
    made: list[int] = []
    cache = Cache(2)
    for key in (1, 2, 1, 3, 1, 2):
        cache.get(key, lambda key=key: made.append(key) or key)
    assert made == [1, 2, 3, 2]
    assert len(cache) == 2


def test_an_error_is_not_kept() -> None:
    cache = Cache(2)
    with pytest.raises(ZeroDivisionError):
        cache.get("key", lambda: 1 / 0)
    assert cache.get("key", lambda: 5) == 5


def test_several_threads_make_a_value_once() -> None:
    made: list[int] = []
    cache = Cache(2)
    threads = [
        threading.Thread(target=cache.get, args=(0, lambda: made.append(0))) for _ in range(20)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 1


def test_what_is_kept_with_a_network_is_freed_with_it() -> None:
    class Value:
        pass

    net = stax.serial(stax.Dense(3), stax.Relu())
    value = kept_with(net, "key", Value)
    value.net = net  # it may refer to the network
    assert kept_with(net, "key", Value) is value
    seen = weakref.ref(value)
    del net, value
    gc.collect()
    assert seen() is None


@pytest.mark.parametrize("again", [copy.copy, lambda net: pickle.loads(pickle.dumps(net))])
def test_copies_begin_without(again) -> None:
    net = stax.serial(stax.Dense(3), stax.Relu())
    value = kept_with(net, "key", object)
    assert kept_with(again(net), "key", object) is not value
