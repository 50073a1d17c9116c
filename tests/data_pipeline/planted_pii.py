"""Personal data that is nobody's but has the right form, drawn from a seed, and sentences to plant it in."""

import random

DIGITS = "0123456789"
PROVINCES = "京津沪渝冀豫云辽黑湘皖鲁新苏浙赣鄂桂甘晋蒙陕吉闽贵粤青藏川宁琼"
SERIAL = "ABCDEFGHJKLMNPQRSTUVWXYZ0123456789"
ENGLISH = {
    "email": ["Please write to {} today.", "Contact: {}", "<{}>", "Mail {}, thanks."],
    "phone": ["Call me at {}.", "Phone: {}", "My mobile is {}, thanks", "(tel {})"],
    "id": ["His ID is {}.", "Identity card {}, issued there"],
    "card": ["Paid by card {}.", "Visa: {}", "Charged to my credit card {} yesterday"],
    "ip": ["The server {} is down.", "Login from {}", "IP address {}, blocked", "host={}"],
    "plate": ["The car {} was seen.", "Plate {}."],
    "ssn": ["SSN: {}", "Her social security number is {}."],
    "name": [
        "Mr. {} came.",
        "My name is {}, hello.",
        "Dear {}, thanks.",
        "Contact: {}; he",
        "(Dr {})",
        "by Prof. {}'s hand",
    ],
}
CHINESE = {
    "email": ["请联系{}谢谢", "邮箱：{}，", "邮箱{}或电话"],
    "phone": ["电话{}谢谢", "手机号是{}，请拨打", "请拨打{}联系我", "联系方式：{}。"],
    "id": ["身份证号{}的居民", "身份证：{}，", "证件号码{}已登记"],
    "card": ["卡号{}请转账", "银行卡{}，", "用信用卡{}支付"],
    "ip": ["IP地址{}登录", "服务器{}宕机", "来自{}的请求", "攻击者{}已封禁"],
    "plate": ["车牌号{}的车", "车{}违章", "一辆{}，"],
    "ssn": ["社保号{}的人", "号码：{}。"],
    "name": [
        "请问{}老师在吗",
        "联系{}女士。",
        "我叫{}，",
        "我是{}。",
        "收件人：{} 13",
        "联系人：{}电话",
        "我叫{}来自上海",
        "感谢{}经理",
    ],
}
BARE = ["记录是{}的样子", "其中{}，另有", "见（{}）。", "张三 {} 李四", "{}，谢谢"]  # no word says what it is
VERSIONS = [
    "version {}", "Version: {}", "v{}", "numpy {}", "numpy=={}", "requests>={}", "release {}", "build {}", "Firefox/{}",
    "package-{}.tar.gz", "/opt/app/{}/bin", "ver. {}", "版本{}", "版本号：{}", "版本号是{}", "升级到{}", "固件{}", "{}版", "第{}节",
    "section {}",
]  # fmt: skip


def digits(rng, count, first=DIGITS):
    return rng.choice(first) + "".join(rng.choice(DIGITS) for _ in range(count - 1))


def email(rng):
    name = "".join(rng.choice("abcdefghijklmnopqrstuvwxyz") for _ in range(rng.randint(1, 9)))
    name += rng.choice(["", ".li", "_99", "+news", "-x", "2024", ".a.b"])
    host = rng.choice(
        ["qq.com", "gmail.com", "163.com", "mail.example.org", "tsinghua.edu.cn", "x-y.co.uk", "a.museum"]
    )
    return f"{name}@{host}" if rng.random() < 0.9 else f"{name}@{host}".upper()


def chinese_mobile(rng):
    a, b, c = "1" + rng.choice("3456789") + rng.choice(DIGITS), digits(rng, 4), digits(rng, 4)
    forms = [
        "{}{}{}",
        "{}-{}-{}",
        "{} {} {}",
        "+86{}{}{}",
        "+86 {}{}{}",
        "+86-{}-{}-{}",
        "(+86){}{}{}",
        "0086{}{}{}",
        "86-{}{}{}",
    ]
    written = rng.choice(forms).format(a, b, c)
    return written if rng.random() < 0.9 else "".join(chr(ord(d) + 0xFEE0) if d.isdigit() else d for d in written)


def phone(rng):
    if rng.random() < 0.5:
        return chinese_mobile(rng)
    area, number = rng.choice(["10", "21", "571", "755", "311", "912"]), digits(rng, 8, "2345678")
    chinese = [
        "0{a}-{n}",
        "(0{a}){n}",
        "（0{a}）{n}",
        "0{a}{n}",
        "0{a} {n}",
        "+86 {a} {n}",
        "0{a}-{n}-123",
        "0{a}－{n}",
    ]
    nxx = lambda: digits(rng, 3, "23456789")  # noqa: E731
    american = [
        "{}-{}-{}",
        "({}) {}-{}",
        "({}){}-{}",
        "{}.{}.{}",
        "+1-{}-{}-{}",
        "1-{}-{}-{}",
        "001-{}-{}-{}x123",
        "{}{}{}",
        "+1{}{}{}",
    ]
    british = [
        "0113 496 0{}",
        "01632 960{}",
        "07700 900{}",
        "07700900{}",
        "+44 7700 900{}",
        "+44(0)7700 900{}",
        "(0113) 4960{}",
    ]
    other = [
        "+33 6 12 34 5{0[0]} {0[1]}{0[2]}",
        "+49 30 12345{}",
        "+81-3-1234-5{}",
        "0033612345{}",
        "+852 2345 6{}",
        "+65 6123 4{}",
    ]
    return rng.choice([
        rng.choice(chinese).format(a=area, n=number), rng.choice(american).format(nxx(), nxx(), digits(rng, 4)),
        rng.choice(british).format(digits(rng, 3)), rng.choice(other).format(digits(rng, 3)),
    ])  # fmt: skip


def resident_id(rng):
    area = rng.choice(["110105", "310101", "440305", "510107", "650102", "820000"])
    birth = f"{rng.choice([19, 20])}{rng.randint(10, 24)}{rng.randint(1, 12):02}{rng.randint(1, 28):02}"
    if rng.random() < 0.1:
        return area + birth[2:] + digits(rng, 3)
    body = area + birth + digits(rng, 3)
    weights = [2 ** (17 - i) % 11 for i in range(17)]
    check = "10X98765432"[sum(w * int(d) for w, d in zip(weights, body)) % 11]
    check = check.lower() if rng.random() < 0.3 else check
    return f"{body[:6]} {body[6:14]} {body[14:]}{check}" if rng.random() < 0.1 else body + check


def card(rng):
    start, length = rng.choice(
        [
            ("4", 13),
            ("4", 16),
            ("4", 19),
            ("51", 16),
            ("2221", 16),
            ("34", 15),
            ("6011", 16),
            ("622202", 19),
            ("3528", 16),
            ("36", 14),
        ]
    )
    body = start + digits(rng, length - len(start) - 1)
    doubled = [sum(divmod(2 * int(d), 10)) for d in body[::-2]] + [int(d) for d in body[-2::-2]]
    number = body + str(-sum(doubled) % 10)
    between = rng.choice(["", "", " ", "-"])
    return between.join(number[i : i + 4] for i in range(0, length, 4))


def ip(rng):
    if rng.random() < 0.25:
        groups = [f"{rng.randrange(0x1000, 0xFFFF):x}" for _ in range(8)]
        return rng.choice([":".join(groups), f"2001:{groups[0]}::{groups[1]}", f"fe80::{groups[0]}:{groups[1]}"])
    inside = f"10.{rng.randrange(256)}.0.{rng.randrange(256)}"
    return rng.choice(
        [inside, *(".".join(str(rng.randrange(1, 256)) for _ in range(4)).replace("127.", "126.", 1) for _ in range(3))]
    )


def plate(rng):
    start = rng.choice(PROVINCES) + rng.choice("ABCDEFGHJK") + rng.choice(["", "·", "-", " "])
    ordinary = digits(rng, 3) + rng.choice(SERIAL) + rng.choice(SERIAL)
    return start + rng.choice(
        [ordinary, digits(rng, 5), rng.choice("DF") + digits(rng, 5), digits(rng, 5) + "D", digits(rng, 4) + "挂"]
    )


def ssn(rng):
    return f"{rng.randint(1, 665):03}-{rng.randint(1, 99):02}-{rng.randint(1, 9999):04}"


def name(rng):
    if rng.random() < 0.5:
        surname = rng.choice([*"王李张刘陈杨赵黄周吴徐孙胡朱高林何郭马罗", "欧阳", "司马"])
        return surname + "".join(
            rng.choice("芳伟娜敏静丽强磊军洋勇艳杰娟涛超秀霞") for _ in range(rng.choice([1, 2, 2]))
        )
    surname = rng.choice(["Smith", "O'Brien", "McDonald", "García-López", "van der Berg", "Zhang", "Müller", "SMITH"])
    return f"{rng.choice(['John', 'Mary', 'Grace', 'David', 'Wei'])} {rng.choice(['', '', 'Q. ', 'Ann '])}{surname}"


MAKERS = {
    "email": email, "phone": phone, "id": resident_id, "card": card, "ip": ip, "plate": plate, "ssn": ssn, "name": name,
}  # fmt: skip


def plant_bare(kind, seed):
    """Returns (text, start, end): a value of this kind beside Han, without a word that says what it is."""
    rng = random.Random(f"bare {kind} {seed}")
    value = MAKERS[kind](rng)
    before, after = rng.choice(BARE).split("{}")
    return f"那天天气很好。{before}{value}{after}", 7 + len(before), 7 + len(before) + len(value)


def plant(kind, seed):
    """Returns (text, start, end): a value of this kind in an English or a Chinese sentence among others."""
    rng = random.Random(f"{kind} {seed}")
    value = MAKERS[kind](rng)
    ways = [(ENGLISH, "The weather was fine that day. "), (CHINESE, "那天天气很好。")]
    sentences, filler = rng.choice(ways if kind != "name" else ways[:1] if value[0].isascii() else ways[1:])
    before, after = rng.choice(sentences[kind]).split("{}")
    start = len(filler + before)
    return f"{filler}{before}{value}{after} {filler}", start, start + len(value)
