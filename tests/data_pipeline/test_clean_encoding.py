"""Is text read in a wrong code repaired, exactly or not at all, and is text that is right left alone?"""

import random

import pytest

from data_pipeline.rules.encoding import repair_encoding
from tests.data_pipeline.clean_texts import CHINESE, ENGLISH, OTHERS

RECALL = 0.95
DAMAGE = {
    "UTF-8 as Latin-1": lambda text: text.encode().decode("latin-1"),
    "UTF-8 as Windows-1252": lambda text: text.encode().decode("cp1252"),
    "UTF-8 as Windows-1252 twice": lambda text: text.encode().decode("cp1252").encode().decode("cp1252"),
    "UTF-8 as Latin-1 twice": lambda text: text.encode().decode("latin-1").encode().decode("latin-1"),
    "UTF-8 as GBK": lambda text: text.encode().decode("gb18030"),
    "GBK as Latin-1": lambda text: text.encode("gbk").decode("latin-1"),
    "GBK as Windows-1252": lambda text: text.encode("gbk").decode("cp1252"),
}


TRADITIONAL = (
    "這個檔案包含安裝程式的設定，請先閱讀說明。", "進階閱讀：磁碟陣列與檔案系統。", "選擇「工具」選單中的「選項」，然後按一下「確定」。", "昨夜雨疏風驟，濃睡不消殘酒。",
    "圖形介面啟動後，您可以從左邊的清單選擇語言與鍵盤。", "無法開啟檔案：沒有這個目錄，或是權限不足。", "老師說這本書很難，不過學生們都讀得很開心。",
)  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("sentences", [ENGLISH, CHINESE, TRADITIONAL, OTHERS[:5]])
def test_wrong_encodings_are_repaired_exactly(damage, sentences):
    if "GBK" in damage and sentences not in (CHINESE, TRADITIONAL):
        pytest.skip("no Chinese in it")
    texts = [*sentences, *("\n".join(sentences[i : i + 3]) for i in range(len(sentences) - 2))]
    damaged = []
    for text in texts:
        try:
            damaged.append((DAMAGE[damage](text), text))
        except UnicodeError:  # this code has no character for one of the bytes: bytes are lost, not to be repaired
            continue
    damaged = [(bad, text) for bad, text in damaged if bad != text]
    missed = [(bad, repair_encoding(bad)) for bad, text in damaged if repair_encoding(bad) != text]
    assert len(missed) <= (1 - RECALL) * len(damaged), missed[:3]


def test_one_wrong_quotation_is_repaired_where_it_stands():
    text = CHINESE[0] + "\nHe said itâ€™s fine — “CAFÉ…” and l'été…»\n"
    assert repair_encoding(text) == text.replace("â€™", "’")
    assert repair_encoding("浣犲ソ，鎴戜滑鏄湅鍙嬨€\n" + CHINESE[1]).endswith(CHINESE[1])
    for about in ("An é shows as “Ã©” there.", "显示为「Ã©」。", "« Ã© », dit-il"):
        assert repair_encoding(about) == about  # it speaks of the fault


@pytest.mark.parametrize("damage", [damage for damage in DAMAGE if "twice" not in damage])
def test_what_is_too_short_to_tell_stays(damage):
    rng = random.Random(damage)
    told = []
    for sentence in (*CHINESE, *TRADITIONAL) * 20:
        at, size = rng.randrange(len(sentence)), rng.randint(1, 4)
        text = rng.choice(("", "Debian ", "1. ")) + sentence[at : at + size] + rng.choice(("", " 2", " (_F)"))
        try:
            bad = DAMAGE[damage](text)
        except UnicodeError:
            continue
        result = repair_encoding(bad)
        told += [(bad, result)] * (result not in (bad, text))
    assert len(told) <= 4, told  # of up to 380


def test_a_page_of_short_lines_is_repaired_for_all_of_them_together():
    page = "文件\n编辑\n查看\n第 5 章\n目录\n谢谢\nLibreOffice 帮助\n→ https://example.com\n"
    for damage in ("GBK as Latin-1", "UTF-8 as Latin-1", "UTF-8 as Windows-1252"):
        assert repair_encoding(DAMAGE[damage](page)) == page


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_line_is_repaired_and_its_neighbours_stay(damage):
    for line in (CHINESE[3], TRADITIONAL[2]):
        for others in (
            ENGLISH,
            CHINESE,
            OTHERS,
            ("Er frißt Gras.", "gleicher Maße", "durchzuführen", "Öl", "Protéger", "\xa0See"),
        ):
            try:
                assert repair_encoding("\n".join([*others, DAMAGE[damage](line)])) == "\n".join([*others, line])
            except UnicodeError:
                continue


@pytest.mark.parametrize(
    "text",
    [
        "ÀÁÂÃÄÅÆÇÈÉÊËÌÍÎÏ\nÐÑÒÓÔÕÖ×ØÙÚÛÜÝÞß", "ÅåÄäÖö", "ÉéÈèÀàÇç", "ÄÖÜäöüß", "ÁÉÍÓÚÜÑ", "A-ZÀ-ÖØ-öø-ÿ", "¡¢£¤¥¦§¨©ª«¬®¯°±²³´µ¶·¸¹º»¼½¾¿", "20°C±2°",
        "5×3÷2", "½×¾", "NÃO HÁ AÇÕES À ÉPOCA", "SÄÄNNLAUS", "¿Qué? ¡ÁÉ!", "[MMDDhhmm[[ÅÅ]ÅÅ][.ss]]", "Láá Láá Bwamu", "méga-église", "ŽŠČŘ",
        'StrConv("ÉÏº£ÊÐABC", vbFromUnicode)', "ÞJÓÐ", "“Ã©” or Ã¨” or “Ã§”", "délai d’attente",
    ],
)  # fmt: skip
def test_letters_and_signs_of_latin_are_no_chinese(text):
    assert repair_encoding(text) == text


@pytest.mark.parametrize(
    ("code", "text"),
    [
        ("euc_kr", "오늘은 날씨가 아주 좋습니다.\n파일을 열 수 없습니다.\n설정을 저장하지 못했습니다."),
        ("euc_jp", "設定を保存できませんでした。\n福井県の天気は晴れです。\nファイルが見つかりません。"),
        ("cp1251", "Настройки не сохранены.\nФАЙЛ НЕ НАЙДЕН\nСегодня хорошая погода."),
        ("cp874", "วันนี้อากาศดีมาก\nไม่พบแฟ้มที่ต้องการ"),
        ("big5", "今天天氣很好。\n找不到檔案，請再試一次。"),
    ],
)
def test_other_codes_do_not_become_chinese(code, text):
    bad = text.encode(code).decode("latin-1")
    assert repair_encoding(bad) == bad
