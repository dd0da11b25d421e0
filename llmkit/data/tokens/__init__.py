"""Text, chats and records to token ids and back.

    make_tokenizer   settings -> tokenizer.json -> Tokenizer
    encode           record -> ids and which of them are learned; of a chat by way of
    chat, turns      messages -> text, and where control tokens and the words of the assistant are in it
    tokenizer        Tokenizer: text_encoder (text -> ids), ids -> text, files, what prompts begin with
    text_encoder     text -> ids, by fast_bpe (tiktoken, or bytes), else by Hugging Face's library; text in
    control_tokens   parts, and with control tokens, by the library
"""
