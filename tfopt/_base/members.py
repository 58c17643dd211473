"""Names of what travels with a model for texts: in its `.keras` archive and in exported files."""

FACTS = "tfopt_text.json"  # the task and the names of classes; `data.text_facts`
TOKENIZER = "tfopt_tokenizer.json"
CHAT = "tfopt_chat.json"  # how messages become a prompt; `data.chat`
LOOKUPS = "tfopt_lookups.json"  # what a model was cut behind; `data.lookup`
PACKED = TOKENIZER + ".zlib"  # in exported files, where every byte counts
