from widelimit.tables import text_table


def test_text_table():
    assert text_table(["a", "bb"], [["long", "1"], ["x", "2.50"]]) == (
        "a       bb\n----  ----\nlong     1\nx     2.50"
    )
