"""Texts on which two encoders are likely to differ."""

HARD_TEXTS = (
    "",
    " ",
    "\n",
    "\x00",
    "It's we'll THEY'RE I'd DON'T o'clock ''s '\u017f",
    "a  b   c    d\te\t\tf \t g\u00a0h\u3000i\u2003\u2028j\u2029k\x85l\x85\x85m\x0bn\x0co\x1cp",
    "  lead\r\n\r\n\r\n  indent\n\n\n    deep\n \n\t\n tail   \n   ",
    "0 1 12 123 1234 12345 1234567890 3.14159 1,000,000 \u0663\u0664\u0665 \u00bd \u2167 \uff11\uff12\uff13",
    "!!! ... ???!!! ---->>> /* x */ {[(<>)]} \\\\ \"'`~^_=+|%$#@& :-) ;\n;\n\n  ;\r\n ;",
    "na\u00efve e\u0301a\u0300\u0323\u0323 \u0301\u0302 \u00e9\u00c9 stra\u00dfe \u0130i\u0131 \u01c5",
    "\u65e5\u672c\u8a9e\u306e\u6587\u7ae0\u3002\uff01 \ud55c\uad6d\uc5b4 \u4e2d\u6587 mixed\u4e2d\u6587text",
    "\u0e44\u0e17\u0e22 \u0939\u093f\u0928\u094d\u0926\u0940 \u0627\u0644\u0639\u0631\u0628 \u05e2\u05d1",
    "\U0001f600\U0001f468\u200d\U0001f469\u200d\U0001f467 \U0001f3f3\ufe0f\u200d\U0001f308",
    "\ufeffbom \u200b\u200c\u2060 \ufffd \ufffe\uffff \U0010ffff \U000e0001 \ue000 \U00020000\U0001d400",
    "<|endoftext|> <|im_start|>user\n<|im_end|></s><s>[INST] <unk><pad> <|start_header_id|>",
    "a" * 3000 + " " * 3000 + "x" + "\n" * 3000 + "!" * 3000 + "7" * 3000 + "\u65e5" * 3000 + " \n" * 3000,
)
