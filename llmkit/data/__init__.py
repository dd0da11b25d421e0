r"""From text to batches.

The mental model: the rows that a run trains on are a list without end, a pure function of the settings, the
files and the seed. Step s takes the next B positions of it, and rank r those that are r modulo the number of
ranks. So all that a checkpoint keeps is how many rows were consumed, and for each lane of a live source where
it stands; any number of ranks goes on from there.

    data.sources[i]           an entry of the settings                source.py, building/prepare.py
        |  list
      files                   local, in a store, on the hub           sources/
        |  cut
      splits                  what can be read by itself              sources/
        |  read
      records                 texts, chats, pairs, ids                sources/
        |  tokenize
      documents               token ids, and which are targets        tokens/
        |          \
        |  before   \  while training
      shards       lanes      on disk; or in memory, by windows       building/, shards/; live/
        |          /
        |  gather /
      rows                    T inputs and the label of the last      sampler.py, batches.py
        |  deal to ranks
      batches                 micro-batches on the host               loader.py, rank_batch.py

Ten words, used in these meanings alone:

    source    an entry of `data.sources`: where texts come from, with its weight in the mixture
    file      what a source names: a path or a URL, with its size and a tag that tells it from a changed one
    split     a part of a file that can be read by itself: some megabytes of lines, row groups of a table
    record    what a file has at an index: a line of jsonl, a row of a table, a text between separators
    document  the tokens of a record, and end-of-text behind them
    window    `data.shuffle_window` records of a live source, which are taken in random order
    lane      a sequence of splits of a live source, read one after the other; it has one cursor
    row       T + 1 neighbouring tokens of a source: T inputs, and labels one further
    shard     a file of tokens, with an index, checksums, and a bit a token where some are no targets
    state     what a checkpoint keeps of all this (`state.DataState`)

A worked example, two documents all the way (`tests/data/test_examples.py` runs it). Bytes are tokens, 256 is
end-of-text, T = 4, two rows a step on two ranks, seed 0:

    a.jsonl             {"text": "abc"}, {"text": "de"}
    records             Text("abc"), Text("de")
    documents           [97 98 99 256], [100 101 256]
    shard               256 100 101 256 97 98 99 256     in random order; repeated: ... 99 256 100 101 ...
    rows of epoch 0     0: [256 100 101 256 97], 1: [97 98 99 256 100], whose end is from epoch 1
    rows of epoch 1     2: [100 101 256 97 98], 3: [98 99 256 100 101]
    step 1              positions 0 and 1 are the rows 1 and 0; rank 0 has the first of them:
                        inputs [97 98 99 256], labels [98 99 256 100]
"""
