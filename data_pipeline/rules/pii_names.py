"""Which words are the name of a person? Only those that something beside them says to be one.

In letters: behind a title (Dr. Grace Park), an introduction (my name is ...), "Dear", the close of a letter, and behind a field
(`Contact: Mary Jones`) where the first word is a common given name. In Chinese: a surname and one or two characters before a
form of address (王小明先生, 王先生) or behind 我叫, 姓名：, 收件人： ..., where it is no ordinary word (高中老师, 对于老师). A name
that nothing announces is not found.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from data_pipeline.rules.pii_name_words import BEGINS_A_WORD, COMPOUND, ENDS_A_WORD, GIVEN, LONGER_WORDS, SURNAMES
from data_pipeline.rules.pii_numbers import Found

LETTER = "A-Za-zÀ-ÖØ-öø-ɏ"
NO_SEAM = r"(?![0-9_@(\[\\/=]|\.[A-Za-z])"
WORD = re.compile(rf"[{LETTER}]+(?:['’-](?!s(?![{LETTER}]))[{LETTER}]+)*{NO_SEAM}")
INITIAL = re.compile(r"[A-Z]\.(?=[ A-Z])")
NAME_WORD = re.compile(rf"{INITIAL.pattern}|[{LETTER}]+(?:['’-][{LETTER}]+)*")  # of a name that was found
PARTICLES = frozenset(["al", "bin", "da", "de", "del", "della", "der", "den", "di", "dos", "du", "el", "ibn", "la", "le", "van", "von"])  # fmt: skip
INNER_CAPITAL = ("Mc", "Mac", "De", "Di", "Du", "La", "Le", "Van", "Fitz")
MOST_WORDS = 5
NO_NAMES = frozenset(
    """
    a an and are as at be but by for from he her here his how i if in is it its my no not now of on or our she so that the their then
    there these they this those to was we were what when where who why with yes you your all any each every some such please note see
    also new once after before although because while since however
    monday tuesday wednesday thursday friday saturday sunday january february march july august september october november
    december sir madam sirs ladies gentlemen customer customers client clients team colleague colleagues friend friends manager editor
    editors reader readers user users member members parent parents student students everyone everybody anyone nobody someone diary
    santa god lord mom dad mum mother father grandma grandpa sister brother son daughter love all president speaker chairman chair
    minister secretary ambassador mayor justice judge senator governor doctor professor captain general colonel officer inspector
    chancellor dean director applicant candidate sponsor guest guests partner partners neighbor neighbour neighbors neighbours hiring
    gov gen col rep sen mr mrs ms mx dr prof miss jr sr ii iii iv phd md esq universe world america right valued sincerely regards
    best thanks hello hi dear doctors department support sales service services office company inc ltd llc corp university college school hospital street road
    avenue committee board bank group project software foundation association administrator admin webmaster developer developers
    staff council club society centre center institute ministry agency press news security marketing engineering
    """.split()  # noqa: SIM905
)
SURNAMES_TOO = frozenset(["Best", "Dean", "Judge", "Lord", "Love", "Major", "Sales"])  # behind another word

# Each begins with one character class, which the engine searches fast; what must not be before it is looked at behind that.
TITLE = re.compile(
    r"[CDHLMPRS](?<![A-Za-z0-9_.@/$-].)(?:(?:(?<=M)(?:rs?|s|x)|(?<=D)r|(?<=P)rof|(?<=R)ev|(?<=H)on|(?<=C)apt|(?<=L)t|(?<=S)gt)\.?"
    r"|(?<=M)iss|(?<=P)rofessor|(?<=S)ir)(?:[ \xa0]{1,2}|\n)(?=[A-ZÀ-ÖØ-Þ]|(?:de|v[ao]n|d[aeiu]|del|el|al|la|bin) )"
)
INTRODUCED = re.compile(
    r"[IMim](?<![A-Za-z0-9_].)(?:(?<=[Mm])y (?:full |first )?name(?: is|['’]s)|(?<=I)(?: am|['’]m) called|(?<=[Ii]) am called) (?=[A-ZÀ-ÖØ-Þ])"
)
PERHAPS = re.compile(  # only before a common given name
    r"[ITtHCc](?<![A-Za-z0-9_].)(?:(?<=I)(?: am|['’]m)|(?<=[Tt])his is|(?<=H)(?:i|ello|ey)|(?<=[Cc])all me|(?<=[Cc])alls me),? (?=[A-Z])"
)
DEAR = re.compile(r"D(?<![A-Za-z0-9_].)ear (?=[A-ZÀ-ÖØ-Þ])")
CLOSE = re.compile(
    r"[BCKLMRSTWYA](?<![^\n \t>].)(?:(?<=B)est(?: regards| wishes)?|(?<=K)ind(?:est)? regards|(?<=W)arm(?:est)? (?:regards|wishes)|(?<=W)ith (?:best|kind|warm) regards"
    r"|(?<=R)egards|(?<=R)espectfully(?: yours)?|(?<=Y)ours(?: (?:sincerely|faithfully|truly))?|(?<=S)incerely(?: yours)?|(?<=C)heers|(?<=C)ordially|(?<=L)ove"
    r"|(?<=M)any thanks|(?<=T)hanks(?: again)?|(?<=T)hank you|(?<=A)ll the best)[,.!]?[ \t]*(?:\n[ \t>]*){1,3}(?:[-–—~]{1,2} ?)?(?=[A-ZÀ-ÖØ-Þ])"
)
DEAR_END, CLOSE_END = re.compile(r" ?[,:!，：\n]"), re.compile(r"[ \t]{0,9}(?:[\n,(]|$)")
COLON = re.compile(r"[:：][ \t\"'*]{0,4}(?=[A-Z][a-z])")
FIELD = re.compile(
    r"(?:(?<![A-Za-z])(?i:(?:full[ _]?|first[ _]?|contact[ _]?|customer[ _]?|client[ _]?|patient[ _]?|employee[ _]?|user[ _]?)?name|contact(?: person)?|person|customer|client"
    r"|attn|attention|recipient|patient|employee|author|from|to|cc|sender|applicant|owner|manager|agent|tenant|signed|(?:written|prepared|reviewed|approved|sent) by"
    r"|(?:ship|bill) to)|姓名|名字|联系人|[收发寄]件人|收货人|负责人|客户)[\"'*]{0,2}[ \t]?$"
)

HAN = "\u3400-\u4dbf\u4e00-\u9fff"
NEVER = frozenset(
    "姓时的了是我你您他她它们这那哪个位些么吗呢吧啊呀着过到被把给让从对与及但所将要去说问请找得还很也都就不没在今住和或跟副总每各该本两几名叫"
)
ADDRESS = re.compile(
    "[先女小太夫老教博医大护经总主律师同院校警阿叔](?:(?<=先)生(?![产成育态物])|(?<=女)士|(?<=小)姐(?!姐)|(?<=太)太|(?<=夫)人|(?<=老)师(?!傅)|(?<=教)授|(?<=博)士"
    "|(?<=医)[生师]|(?<=大)夫|(?<=护)士|(?<=经)理(?![解论智由])|(?<=总)监|(?<=主)任|(?<=律)师|(?<=师)傅|(?<=同)(?:学(?![习会])|志)|(?<=[院校])长|(?<=警)官|(?<=阿)姨|(?<=叔)叔)"
)
BEFORE_ADDRESS = ("副", "总", "前", "名誉")
OFFICE = re.compile("经理|总监|主任|院长|校长|副|总")
SAYS_NAME = re.compile(
    "[我名姓联收发寄负经申法持客患签](?:(?<=[我名])叫|(?<=名)字[是叫]|(?:(?<=姓)名|(?<=名)字|(?<=联)系人|(?<=[收发寄])件人|(?<=[收寄])货人|(?<=负)责人|(?<=经)办人|(?<=申)请人"
    '|(?<=法)定代表人|(?<=持)卡人|(?<=客)户(?:姓名|名称)?|(?<=患)者|(?<=签)名)["”]?(?:[是为叫]|[ \t\u3000]*[:：][ \t\u3000"“]*|[ \t\u3000]+))'
)
MAY_SAY_NAME = re.compile(
    "[我本联收寄](?:(?<=我)是|(?<=本)人|(?<=联)系人|(?<=[收寄])件人|(?<=收)货人)(?![:： \t])"
)  # there the name must end
NEXT_FIELD = re.compile("电话|手机|性别|身份证|地址|住址|年龄|男|女|联系|号码|[0-9A-Za-z]")
BEHIND = NEVER | frozenset("来自年有为同会能可才从，")  # may follow a name, though they stand in names too
NO_LAST = frozenset("人员者座族派省市县村校院党迷区部家")


def find_names(text: str) -> Iterator[Found]:
    """Yields names of people that a cue announces, those of letters first; some may be found by two cues."""
    for start, end in _in_letters(text):
        yield Found("name", start, end)
    if not text.isascii():
        for start, end in _chinese(text):
            yield Found("name", start, end)


def _in_letters(text: str) -> Iterator[tuple[int, int]]:
    for cue in (TITLE, INTRODUCED):
        for match in cue.finditer(text):
            if words := _name_at(text, match.end()):
                yield words[0].start(), words[-1].end()
    for match in PERHAPS.finditer(text):
        words = _name_at(text, match.end())
        if words and words[0][0] in GIVEN:
            yield words[0].start(), words[-1].end()
    for match in DEAR.finditer(text):
        words = _name_at(text, match.end())
        if words and DEAR_END.match(text, words[-1].end()):
            yield words[0].start(), words[-1].end()
    for match in CLOSE.finditer(text):
        words = _name_at(text, match.end())
        if words and CLOSE_END.match(text, words[-1].end()):
            yield words[0].start(), words[-1].end()
    for match in COLON.finditer(text):
        word = WORD.match(text, match.end())
        if word and word[0] in GIVEN and FIELD.search(text[max(0, match.start() - 24) : match.start()]):
            words = _name_at(text, match.end())
            if len(words) > 1:
                yield words[0].start(), words[-1].end()


def _name_at(text: str, at: int) -> list[re.Match[str]]:
    """Returns the capital words and initials from here on that can be one name, up to a word; [] where there is none."""
    words: list[re.Match[str]] = []
    last = 0  # how many of them, up to a whole one
    while len(words) < MOST_WORDS:
        word = INITIAL.match(text, at) or WORD.match(text, at)
        if not word:
            break
        if len(word[0]) > 1 and word[0][1] != ".":
            if word[0].lower() in NO_NAMES and not (words and word[0] in SURNAMES_TOO):
                break
            if _is_capital(word[0]):
                last = len(words) + 1
            elif word[0] not in PARTICLES:
                break
        elif not word[0].endswith("."):
            break
        words.append(word)
        at = word.end()
        if text[at : at + 1] == " ":
            at += 1
        elif not word[0].endswith("."):
            break
    return words[:last]


def _is_capital(word: str) -> bool:
    """Whether a word is written as names are: Smith, O'Brien, McDonald, Jean-Luc, SMITH; not LaTeX, iPhone.

    >>> [_is_capital(word) for word in ("Jean-Luc", "O'Brien", "McDonald", "SMITH", "LibreOffice", "e-mail", "SQL")]
    [True, True, True, True, False, False, False]
    """
    if word.isupper():
        return len(word) > 3
    parts = re.split("['’-]", word)
    for part in parts:
        body = next(
            (part[len(head) :] for head in INNER_CAPITAL if part.startswith(head) and part[len(head) :][:1].isupper()),
            part,
        )
        if not (body[0].isupper() and (body[1:].islower() or (len(parts) > 1 and len(body) == 1))):
            return False
    return True


def _chinese(text: str) -> Iterator[tuple[int, int]]:
    for match in ADDRESS.finditer(text):
        end = match.start()
        old = text[end - 1 : end] == "老" and match[0] in ("先生", "太太")
        end -= 1 if old else next((len(word) for word in BEFORE_ADDRESS if text.endswith(word, 0, end)), 0)
        for size in (4, 3, 2, 1):
            if size == 1 and text[end - 1 : end] == "任" and OFFICE.match(text, end):  # "becomes"
                break
            if end - size >= 0 and _can_be_name(text, end - size, end):
                yield end - size, end
                break
    for match in SAYS_NAME.finditer(text):
        yield from _name_from(text, match.end(), strict=False)
    for match in MAY_SAY_NAME.finditer(text):
        yield from _name_from(text, match.end(), strict=True)


def _name_from(text: str, start: int, strict: bool) -> Iterator[tuple[int, int]]:
    """Yields the longest name of two to four characters that begins here and behind which a name can end."""
    for end in range(min(start + 4, len(text)), start + 1, -1):
        if not _can_be_name(text, start, end) or (strict and text[end - 1] in NO_LAST):
            continue
        after = text[end : end + 3]
        han = re.match(f"[{HAN}]", after)
        if not han or (not strict and text[end - 1] not in BEHIND and (after[0] in BEHIND or NEXT_FIELD.match(after))):
            yield start, end
            return


def _can_be_name(text: str, start: int, end: int) -> bool:
    """Whether a surname with up to two other characters stands here, which with what is beside them are no ordinary word.

    >>> [_can_be_name("对于高中和王国", a, b) for a, b in ((1, 2), (2, 4), (5, 6), (5, 7))]
    [False, False, True, False]
    """
    name = text[start:end]
    size = 2 if name[:2] in COMPOUND else 1
    given = name[size:]
    if len(given) > 2 or not all("\u3400" <= char <= "\u9fff" and char not in NEVER for char in given):
        return False
    if size == 2:
        return True
    surname = name[0]
    if surname not in SURNAMES or (start and text[start - 1] in ENDS_A_WORD.get(surname, "")):
        return False
    return not given or (given[0] not in BEGINS_A_WORD.get(surname, "") and name not in LONGER_WORDS)
