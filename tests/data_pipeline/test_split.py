"""Are two documents the same text where they differ in signs and case alone, however that is computed?"""

from data_pipeline.split import NOT_COMPARED, compared_bytes


def test_the_fast_way_to_compare_leaves_out_the_same_characters():
    every = "".join(chr(code) for code in range(0x11000) if not 0xD800 <= code < 0xE000)
    assert compared_bytes(every) == NOT_COMPARED.sub("", every.casefold()).encode()
