"""From the settings of a source to its records.

    Source -> files.list_files -> File -> splits.split_files -> Split -> reader.SourceReader.read -> RawRecord

A *file* is local or behind a URL (byte_reader, remote, retries). A *split* is a range of one file, or
several small files, that is read by itself: bytes of a text file (text_files), row groups or record batches
of a table (tables), a unit of a plugin's source (custom). A *record* is what is made of a line, row or
document: a text, chat, prompt with completion, preference or token ids, or the reason why it is skipped
(extract, records).

>>> source = Source(type="jsonl", path=f"{folder}/a.jsonl")
>>> Path(source.path).write_bytes(b'{"text": "one"}\\n{"text": ""}\\n{"text": "three"}\\n')
47
>>> files = list_files(source, "data.sources.0")
>>> files[0].size, files[0].tag
(47, '55508f73bbd22193')
>>> splits = split_files(source, files, 30, "data.sources.0")
>>> splits
[Split(file=0, start=0, end=23, size=23), Split(file=0, start=23, end=47, size=24)]
>>> reader = SourceReader(source, "web", "data.sources.0", "skip", files, splits)
>>> next(reader.read(0))
RawRecord(number=0, seek_hint=0, record=Text(text='one'), repaired=False)
>>> [raw.record for raw in reader.read(1)]
[Text(text='three')]
>>> [(Path(location).name, skipped) for location, skipped in reader.skipped()]
[('a.jsonl:2', Skipped(reason='empty', detail='there is no text'))]
"""
