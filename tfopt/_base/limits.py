"""How much a file that nobody here wrote may ask for: compared with the file before anything is built."""

# Configurations and other members that are read whole. The largest of Keras's own applications has 0.5 MB.
MAX_TEXT_BYTES = 64 * 2**20
# Tokenizers, which have one line for each of up to a million pieces.
MAX_MEMBER_BYTES = 256 * 2**20
# Lists and objects in one another; models within models within wrappers reach about thirty.
MAX_DEPTH = 200
# Bytes of a member or dataset for each byte that it takes in the file; zeros pack best, with about 1,000.
MAX_RATIO = 1100
# Of an archive, when it is unpacked.
MAX_UNPACKED_BYTES = 64 * 2**30
# Bytes that a model may take beside its stored weights: seeds, counters and statistics that a file need not hold.
SPARE_BYTES = 64 * 2**20
# Memory and time of a process that looks into a file, beyond what TensorFlow takes; a model is held more than once.
PARSING_BYTES, PARSING_RATIO, PARSING_SECONDS = 8 * 2**30, 8, 600.0
# One record of a TFRecord file: protocol buffers end at 2 GB.
MAX_RECORD_BYTES = 2**31
