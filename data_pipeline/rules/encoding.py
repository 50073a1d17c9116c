"""Was a text decoded with the wrong code, and what did it say? Only repairs whose whole round trip is exact.

Repaired: UTF-8 read as Latin-1 or Windows-1252, also several times over; UTF-8 read as GBK; GBK read as Latin-1 or
Windows-1252. What lost bytes (U+FFFD, as from GBK read as UTF-8; 锟斤拷) cannot be repaired: the drop rule `mojibake`
refuses it. Repairs are local, so that a document with one wrong quotation keeps the rest as it is.

Chinese is told by how frequent its characters are, over a text and then a line: what Korean, Japanese, Thai or Arabic
codes read as GBK are rare ones. What may be a Latin word or a list of letters is no evidence; a text that may be two things stays.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Iterator

# What bytes 0x80 to 0xFF become: Latin-1 gives characters of the same number, Windows-1252 gives 27 of them others.
CP1252 = {
    0x80 + i: char for i, char in enumerate(bytes(range(0x80, 0xA0)).decode("cp1252", "replace")) if char != "\ufffd"
}
FROM_CP1252 = {ord(char): byte for byte, char in CP1252.items()}
TAIL = "".join(CP1252.values()) + "\x80-\xbf"  # as characters: the second and later bytes of UTF-8
SEQUENCE = f"[\xc2-\xdf][{TAIL}]|[\xe0-\xef][{TAIL}]{{2}}|[\xf0-\xf4][{TAIL}]{{3}}"
RUN = re.compile(f"(?:{SEQUENCE})+")
RUN_BEGINS = re.compile(f"[\xc2-\xf4][{TAIL}]")
# What follows a word that ends in a capital or accented letter: `CAFÉ”`, `l'été…»`, „Ä“. No evidence by itself.
FOLLOWS = frozenset("“”‘’»«…–—›‹\xa0™®°²³¹ºª·")
OPENS = frozenset("“‘„‚«‹¿¡\xa0")  # what stands before a word
QUOTES = frozenset("„“”‚‘’«»‹›\"'「」『』`")
# Blocks that text is written in. Not: NKo, Samaritan, Thaana and others that `ß“` or `à «` would make by chance.
WRITTEN = re.compile(
    "[\xa0-\u024f\u02c6\u02dc\u0300-\u036f\u0370-\u0481\u048a-\u04ff\u0531-\u058f\u05be-\u05f4\u060c-\u06ff\u0900-\u0e7f\u1000-\u11ff"
    "\u1e00-\u1fff\u2010-\u27bf\u2b00-\u2bff\u3000-\u30ff\u3100-\u312f\u3200-\u33ff\u3400-\u9fff\uac00-\ud7a3"
    "\uf900-\ufaff\ufb00-\ufb06\ufe0e-\ufe0f\uff00-\uffef\U0001f000-\U0001faff\U00020000-\U0003ffff]+"
)
SIGNS = range(0x2010, 0x2C00)  # quotes, dashes, currencies, arrows and the like: â€™ and âˆž, never two ends of a word

# What two-byte sequences spell: letters of one alphabet and the signs around them. Not `Ŀ¼` or `ͶӰ`, which were GBK.
ALPHABET = re.compile(
    "[\xa0-\xbf\u02c6\u02dc]*+(?:[\xc0-\u0180\u01a0-\u01b0\u0218-\u021b]++|(?=[\u0370-\u03ff]*?[\u0386-\u03ce]{2})[\u0370-\u03ff]++"
    "|(?=[\u0400-\u052f]*?[\u0400-\u045f]{2})[\u0400-\u052f]++|[\u0531-\u0587]++|[\u0591-\u05f4]{2,}+|[\u060c-\u06ff]{2,}+)?+"
    "[\xa0«»®°²³¹ºª·]*"
)

# Windows-1252 read as Latin-1: quotes, dashes, the euro. Not 0x85, which is also a line end, and goes as a control.
# (What begins with a set of characters is found much faster than what begins with a group or looks back.)
LONE = re.compile("[\x80\x84\x8b\x91-\x97\x99\x9b](?<![^\x00-\x7f].)(?![^\x00-\x7f])(?:(?<!\x99)|(?<=[0-9A-Za-z]\x99))")

# The most frequent characters of Chinese, about half of any text, and the next, a third of it: simplified, then traditional.
COMMON = frozenset(
    "的一是不了在人有我他这个们中来上大为和国地到以说时要就出会可也你对生能而子那得于着下自之年过发后作里用道行所然家"
    "种事成方多经么去法学如都同现当没动面起看定天分还进好小部其些主样理心她本前开但因只从想实日军者意无力它与长把机十"
    "民第公此已工使情明性知全三又关点正业外将两高间由问很最重并物手应战向头文体政美相见被利什二等产或新己制身果加西斯"
    "月话合回特代内信表化老给世位次度门任常先海通教儿原东声提立及比员解水名真论处走义各入几口认条平系气题活尔更别打女"
    "变四神总何电数安少报才结反受目太量再感建务做接必场件计管期市直德资命山金指克许统区保至队形社便空决治展马科司五基"
    "眼书非则听白却界达光放强即像难且权思王象完设式色路记南品住告类求据程北边死张该交规万取拉格望觉术领共确传师观清今"
    "切院让识候带导争运这個們來國說時會對發後經學現當動還進樣開從實無與長機業將間應戰見產話給門電單書這爲於過裏種麼沒"
    "軍關點兩問並頭體內兒東聲員論處義幾認條氣題爾別變總數報結務場計資許統區隊決馬則聽卻達強難權設記類據邊張該規萬覺術"
    "領確傳師觀讓識帶導爭運這"
)
FREQUENT = frozenset(
    "城武石级江省委元湖汉首流米州华议称府族京河县改风组布百济党技黄选职号花兵干农集联古广质阳增历史专官每商步车台林游"
    "举线言皇土团收考叫近备研具李众连调转笑革持始英士根造较际亲单朝红型价校约器字段周亚深功属积快图火千准究往极育装参"
    "半令吃鱼精办帝八复影远群包整构料随划算容示投势热值夫网源息语股铁断派速怎需片爱律纪支早况病境证编越局推满列服双未"
    "居除乐企引标织初青志率项飞球节察龙响药站施均消客失轻存低甚般击曾防请离落显罗营足素视护副食创余照兴占巴虽洲村费易"
    "试星木黑左宝置跟央维采六底宫房音环案批斗富乡另倒若按查故突责严桥模仅胜杀围席态破承招杨负层须父供续状域似依银范修"
    "找九致密终血旅钱赛独细效玉冲获习医演毛尽脸弹楼艺航陆右协七攻镇检写苏宗章注阿抗弟坐验封紧劳户优财养适陈喜卫排射哥"
    "油刻留急降念云微伤例景拿绝阶座刘刚害印亿沙母酒助闻超审待压升送监策略限竟香配藏敌呢差仍兰温园树征善波哪词岛止预怕"
    "继皮执味份角草男普答益谁船惊核街夏宣掌田久著画辑奇尼剑吧谈背免孩礼材愿洋春架筑括晚乱乎讲尚良友临激刀夜室既敢邦挥"
    "昌板胡欧福港叶简苦担句岁荆贵娘守辖威宜衣帮块堂额错剧充欢够孙班呼阵销坚练脚退读测吴希宁换版异某顾曲楚典朱毒菜判救"
    "宋茶洪含顺啊鲜败货矿端兄归冷忙买险康评肉吗厂永哈沉散遗停笔假输牛洞松渐顶训录否述毕督控丰献姑忽爷互亮纳襄登咱钟伯"
    "臣雄季脑介鄂召饭暗扩祖齐短烈赶牌恩诉移诗础露届蒙静喝盘卖植授伊湾博痛减穿逐秘庭陵固禁票灵杂姓泽吸侧庆妈遇追甲馆补"
    "唐炮沿殿刺怪彩俄旧警索岸轮妇载靠附毫怀软骨探雷旁罪枪牙迎序慢盛雨級漢華議稱縣風組濟黨黃選職號幹農聯廣質陽歷專車臺"
    "遊舉線團備衆連調轉較際親紅價約亞屬積圖準極裝參喫魚辦復遠羣構隨劃勢熱網語鐵斷愛紀況證編滿雙樂標織項飛節龍響藥輕擊"
    "請離顯羅營視護創餘興佔雖費試寶維採宮環鬥鄉責嚴橋僅勝殺圍態楊負層須續狀銀範終錢賽獨細衝獲習醫盡臉彈樓藝陸協鎮檢寫"
    "蘇驗緊勞戶優財養適陳衛雲傷絕階劉剛億聞審壓監敵蘭溫園樹徵詞島預繼執誰驚畫輯劍談禮願築亂講臨揮歐葉簡擔歲荊貴轄幫塊"
    "額錯劇歡夠孫陣銷堅練腳讀測吳寧換異顧順鮮敗貨礦歸買險評嗎廠遺筆輸漸頂訓錄畢豐獻爺納鍾腦飯擴齊趕訴詩礎屆靜盤賣灣減"
    "祕靈雜澤側慶媽館補舊輪婦載懷軟槍"
)
HAN = re.compile("[\u3400-\u9fff]")


def _gbk(lead: Iterable[int], trail: Iterable[int]) -> str:
    return "".join(bytes((a, b)).decode("gb18030", "ignore") for a in lead for b in trail)


# Two Chinese characters of UTF-8 are three of GBK: lead and tail, tail and lead, two tails. A last one may take an ASCII byte.
TAILS, LEADS = range(0x80, 0xC0), range(0xE4, 0xEA)
HEAD = f"[{_gbk(LEADS, TAILS)}锛锝銆鈥]"
TWO_HAN = f"{HEAD}[{_gbk(TAILS, (*LEADS, 0xE2, 0xE3, 0xEF))}][{_gbk(TAILS, TAILS)}]"
AS_GBK = re.compile(TWO_HAN)
ALL_AS_GBK = re.compile(f"(?:{TWO_HAN})+(?:{HEAD}[{re.escape(_gbk(TAILS, range(0x40, 0x7F)))}])?")

HIGH = "\x80-\xff" + "".join(CP1252.values())
LATIN = re.compile("[\x80-\x9f\xc0-\xff]")
ENDS_WORD = re.compile(f"[{''.join(FOLLOWS)}]*+(?![{HIGH}])")
# GBK read as Latin-1 or Windows-1252: pairs of characters, of which the second may be ASCII, so that `é` may be one with
# what follows it. All but a few texts have one of two signs or capitals.
GBK_AS_LATIN = re.compile(f"(?:[\x81-\xfe{''.join(CP1252.values())}][\x40-\x7e{HIGH}])+")
PAIR = re.compile("[\x81-\x9f\xa1\xa3\xb0-\xd7][\x80-\x9f\xa1-\xfe]")
# What may also be Latin: letters as they are beside each other in a word or at its end, with a sign before it, two behind it;
# and what stands in quotes in a text about this fault.
BESIDE = "\xa0-\xbf×" + "".join(set(CP1252.values()) - set("ŠŒŽŸšœžƒ"))
WORD = re.compile(f"[{BESIDE}]?(?:[A-ZÀ-ÖØ-ÞŠŒŽŸ]+|[A-ZÀ-ÖØ-ÞŠŒŽŸ]?[a-zß-öø-ÿšœžƒ]+)?[@-~]*[{BESIDE}]{{0,2}}")
IN_WORD = re.compile("[A-Za-z][ß-öø-ÿ]|\xa0[A-Za-z]")
QUOTED = re.compile("[\"'`「『][\x80-\xff]+[0-9A-Za-z]*[\"'`」』]")
KANA = re.compile("[\u3041-\u30fe]")


def repair_encoding(text: str) -> str:
    """Repairs text that was decoded with the wrong code, where that is sure and exact.

    >>> repair_encoding("itâ€™s a cafÃ©"), repair_encoding("ä½\\xa0å¥½ï¼Œä¸–ç•Œ")
    ('it’s a café', '你好，世界')
    >>> repair_encoding("浣犱粬濂瑰ソ锛�"), repair_encoding("浣犱粬濂瑰ソ鍚梐")  # of the first a byte was lost
    ('你他她好锛�', '你他她好吗a')
    >>> repair_encoding("ÖÐ¹úÈËÃñ"), repair_encoding("„Ä“ und CAFÉ…")
    ('中国人民', '„Ä“ und CAFÉ…')
    """
    while not text.isascii():
        start, data = text, text.encode("utf-8", "surrogatepass")
        if b"\xc3" in data:  # as UTF-8 begins the letters of Latin-1, without which neither fault is there
            text = _as_latin(_latin_as_gbk(text))
        text = _as_gbk(text)
        if b"\xc2" in data and LONE.search(text):
            text = "\n".join([_lone_signs(line) if LONE.search(line) else line for line in text.split("\n")])
        if text == start:
            break
    return text


def signs_of_damage(text: str) -> Iterator[int]:
    """Yields places in a text; `repair_encoding` leaves alone whatever has none."""
    if text.isascii():
        return
    data = text.encode("utf-8", "surrogatepass")
    for pattern in (AS_GBK, *([LATIN] if b"\xc3" in data or b"\xc2" in data else [])):
        yield from (match.start() for match in pattern.finditer(text))


def _to_bytes(text: str) -> bytes | None:
    try:
        return text.translate(FROM_CP1252).encode("latin-1")
    except UnicodeEncodeError:
        return None


def _lone_signs(line: str) -> str:
    return line if _may_be_gbk(line) else LONE.sub(lambda match: CP1252[ord(match.group())], line)


def _as_latin(text: str) -> str:
    """Repairs UTF-8 that was read as Latin-1 or Windows-1252; runs that could be meant only beside sure ones."""
    if not RUN_BEGINS.search(text):
        return text
    verdicts: dict[int, tuple[str, bool]] = {}
    start = 0
    for line in text.split("\n"):
        if RUN_BEGINS.search(line) and (_decode(_to_bytes(line), "utf-8") or not _may_be_gbk(line)):
            for match in RUN.finditer(text, start, start + len(line)):
                decoded = _decode(_to_bytes(match.group()), "utf-8")
                if decoded and (WRITTEN.fullmatch(decoded) or RUN.search(decoded)):  # or it was read wrongly once more
                    verdicts[match.start()] = decoded, _is_sure(text, match, decoded)
        start += len(line) + 1
    sure = sum(is_sure for _, is_sure in verdicts.values())
    if not sure:
        return text
    all_of_them = 2 * sure >= len(verdicts)

    def replace(match: re.Match[str]) -> str:
        decoded, is_sure = verdicts.get(match.start(), ("", False))
        return decoded if decoded and (is_sure or all_of_them) else match.group()

    return RUN.sub(replace, text)


def _is_sure(text: str, match: re.Match[str], decoded: str) -> bool:
    """Says whether a run can be nothing but UTF-8, and not a word's end with the signs behind it, nor GBK."""
    raw, start, stop = match.group(), match.start(), match.end()
    before, after = text[max(start - 1, 0) : start], text[stop : stop + 1]
    if not ENDS_WORD.match(text, stop) or (before not in OPENS and _to_bytes(before) and not before.isascii()):
        return False  # part of a longer stretch that is no UTF-8
    within = after.isalpha() and after.isascii()
    behind_letter = before.isalpha() and before.isascii()
    is_accent = behind_letter and "\u0300" <= decoded[0] <= "\u036f"
    is_written = (
        max(decoded) > "\u07ff" or is_accent or (ALPHABET.fullmatch(decoded) or RUN.search(decoded)) is not None
    )
    if any("\x80" <= char < "\xa0" for char in raw):  # no text has such controls
        return is_written
    around = text[max(start - 2, 0) : start].strip()[-1:], text[stop : stop + 2].strip()[:1]
    quoted = sum(side in QUOTES for side in around)
    if not before.isalnum() and not after.isalnum() and quoted > (len(raw) > 2):
        return False  # a text about this fault: like “Ã©”
    if len(decoded) > 1 and (len(raw) > 2 * len(decoded) or not before.isupper()):
        return is_written
    if raw[0] >= "\xf0" or (raw[0] == "â" and ord(decoded[0]) in SIGNS):
        return True
    if len(raw) > 2:
        free = (before.isascii() and not before.isalpha()) or within
        return FOLLOWS.isdisjoint(raw[1:]) or (free and not FOLLOWS.issuperset(raw[1:]))
    if raw[1] in FOLLOWS:
        return (before.islower() and before.isascii()) or (within and raw[1] != "\xa0")
    rare = _weight(_decode(_to_bytes(raw), "gbk")) < 1
    return raw[0] in "ÂÃÄÅÐÑÎÏ" and (within or (rare and not before.isupper()) or (behind_letter and before.islower()))


def _decode(data: bytes | None, code: str) -> str:
    try:
        return data.decode(code) if data else ""
    except UnicodeDecodeError:
        return ""


def _score(text: str) -> int:
    """Weighs how frequent the characters are in Chinese; what other languages and codes read as Chinese is below 0."""
    return sum([_weight(char) for char in text if char > "\x7f"])


@functools.lru_cache(maxsize=32768)
def _weight(char: str) -> int:
    """Returns 2 to -2; -1 for the rest of the first level of GB 2312 and, traditional characters, of Big5."""
    if char in COMMON or char in "，。、；：？！“”‘’（）《》「」『』":
        return 2
    if char in FREQUENT:
        return 1
    if char < "\u0100" or "\u2010" <= char < "\u2c00":  # signs
        return 0
    gbk, big5 = char.encode("gb18030"), char.encode("big5", "ignore") or b"\0"
    return -1 if (len(gbk) == 2 and 0xB0 <= gbk[0] <= 0xD7 and gbk[1] > 0xA0) or 0xA4 <= big5[0] <= 0xC6 else -2


def _as_gbk(text: str) -> str:
    """Repairs UTF-8 that was read as GBK: the whole text, a line, or characters within it."""
    if not AS_GBK.search(text):
        return text
    if new := _read_again(text):
        return new
    return "\n".join([_read_again(line) or ALL_AS_GBK.sub(_read_match, line) for line in text.split("\n")])


def _read_again(text: str) -> str:
    """Returns what GBK says in UTF-8; "" where it may be GBK: in 30 MB of Chinese a hundred words fit, all as rare ones."""
    try:
        new = text.encode("gb18030").decode() if AS_GBK.search(text) else ""
    except UnicodeError:
        return ""
    return new if _score(new) >= 4 - 2 * len(HAN.findall(new)) else ""


def _read_match(match: re.Match[str]) -> str:
    return _read_again(match.group()) or match.group()


def _latin_as_gbk(text: str) -> str:
    """Repairs GBK that was read as Latin-1 or Windows-1252: lines, or runs within them."""
    if not PAIR.search(text):
        return text
    lines = text.split("\n")
    proofs = [_in_no_word(line) for line in lines]
    proof = "".join(proofs)
    if len(set(proof)) < 2 or _score(proof) < 1 or KANA.search(proof):
        return text
    unproved = [line for line, proof in zip(lines, proofs) if not proof and not line.isascii()]
    against = sum([IN_WORD.search(line) is not None or not _may_be_gbk(line) for line in unproved])
    mostly = sum(map(bool, proofs)) > against
    return "\n".join([_line_as_gbk(line, proof, mostly) for line, proof in zip(lines, proofs)])


def _line_as_gbk(line: str, proof: str, mostly: bool) -> str:
    """Repairs a line of which `proof` is no Latin; with less proof where `mostly`, among lines that are GBK."""
    data = _to_bytes(line)
    new = "" if line.isascii() else _decode(data, "gbk")
    if new and not KANA.search(new):
        much = len(set(proof)) >= 2 and 3 * len(proof) >= sum([char > "\x7f" for char in new]) and _score(new) > 0
        alike = mostly and (proof or (_may_be_gbk(line) and not IN_WORD.search(line)))
        if alike or (much and not _decode(data, "utf-8")):
            return new
    if len(set(proof)) < 4 or _score(proof) < 1:
        return line
    return GBK_AS_LATIN.sub(lambda match: _decode(_to_bytes(match.group()), "gbk") or match.group(), line)


def _in_no_word(text: str) -> str:
    """Returns what those runs of a text are in GBK that cannot be Latin letters, nor a list of letters, nor UTF-8."""
    said = []
    for match in GBK_AS_LATIN.finditer(text):
        run, data = match.group(), _to_bytes(match.group())
        quoted = match.start() > 0 and QUOTED.match(text, match.start() - 1)
        listed = list(run) == sorted(run) or run[::2].lower() == run[1::2].lower()  # ÀÁÂÃ, ÅåÄä
        if not (quoted or listed or WORD.fullmatch(run) or _decode(data, "utf-8")):
            said.append(_decode(data, "gbk"))
    return "".join(said)


def _may_be_gbk(text: str) -> bool:
    """Says whether a text is GBK of characters that are not all rare."""
    new = _decode(_to_bytes(text), "gbk")
    return new != "" and _score(new) >= -sum([char > "\x7f" for char in new])
