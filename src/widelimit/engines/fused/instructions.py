"""The vocabulary of compiled programs: codes and columns of their tables."""

# Instructions, and the columns of one.
INPUT, LOAD, WINDOW, NONLINEAR, ADD, MULTIPLY, COPY = range(7)
CODE, SOURCE, TARGET, LEVEL, LEVEL_OUT, HAS_T, PLACE, PLANES, AVERAGE = range(9)
TAPS_Y, TAPS_X, PAD_Y, PAD_X, STRIDE_Y, STRIDE_X, STEP_Y, STEP_X, FLAT = range(9, 18)
HAS_G, AROUND = 18, 19
# Addresses of the loops of an activation: see `loops`. Without LOOP it is a ReLU among positions,
# without OWN a position with itself is a pair like others.
RECORD, LOOP, OWN = 20, 21, 22
TABLE = 23  # address of numbers of an activation that are too many for a row; 0 without
COUNTED = 24  # how many of the recorded numbers, at most, are terms that are counted; 0 for all
COLUMNS = 25
NUMBERS = 6  # hyper-parameters of an instruction

VECTOR = 16  # entries that loops take at a time, at least
CHUNK = 1024  # entries of a slice without spatial axes
WORK = 1024  # entries at the end of scratch that loops of activations may use
HEAD = 12  # recorded numbers before those that are counted; the first one is the count

# How a stage ends.
SUM, POOL = range(2)

# Sizes of a stage.
LENGTH, FRONT, BACK, SLOTS, CHANNELS, FINAL, FINAL_LEVEL, END = range(8)
POOL_STRIDE_Y, POOL_STRIDE_X, POOL_PAD_Y = range(8, 11)
SIZES = 11

# Regions of scratch beside the slots: sums over windows, masks per level.
ROW_K, ROW_T, SUM_K, SUM_T, MASKS = range(5)

# Columns of the tables of geometry.
RECTS_FROM, RECTS_TO, COLUMN, ZERO_BLOCK = range(4)  # of a block
WIDTH, ROW, COUNT, P_X, D_X, MASK = range(6)  # of a block at a level
FIRST_ROW, HEIGHT, P_Y, D_Y = range(4)  # of a rectangle at a level
SIZE_Y, SIZE_X, PITCH, REACH_Y, REACH_X, CIRCULAR = range(6)  # of a level
TARGET_INDEX, FIRST_TAP, TAP_COUNT, OUT_FIRST, OUT_SIZE = range(5)  # of what reads a pooled offset
RUN_TARGET, RUN_FROM, RUN_TO, RUN_TAPS, RUN_COUNT, RUN_PITCH = range(6)  # of a row of pool outputs
