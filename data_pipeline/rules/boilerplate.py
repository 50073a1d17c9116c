"""Which lines belong to the page around a text: menus, cookie notices, "read more", 上一篇, 版权所有, share buttons?

Only whole lines go, and only those that say nothing else: a sentence that mentions cookies or 版权 stays. A line of links
(`Home | About | Contact`, 首页 > 新闻 > 正文) goes where all its parts are words of navigation. Lone words of navigation such
as `Home` or 搜索 could be headings, so they go only where three such lines stand together, or two at an end of the text.
"""

from __future__ import annotations

import functools
import re

# Words of navigation, in lower case: lines that consist of them go when at least two stand in one line or three in a row.
WORDS = frozenset(
    ["home", "about", "about us", "contact", "contact us", "login", "log in", "sign in", "sign up", "register", "logout", "log out", "my account", "account", "cart", "basket", "checkout", "wishlist", "search", "menu", "sitemap", "site map", "help", "faq", "faqs", "blog", "news", "shop", "store", "careers", "jobs", "press", "privacy", "privacy policy", "terms", "terms of use", "terms of service", "terms & conditions", "terms and conditions", "cookie policy", "cookies", "imprint", "accessibility", "advertise", "subscribe", "newsletter", "rss", "rss feed", "feedback", "support", "archives", "archive", "categories", "tags", "previous", "next", "prev", "back", "back to top", "top", "print", "email", "share", "tweet", "like", "follow us", "facebook", "twitter", "x", "linkedin", "pinterest", "reddit", "tumblr", "instagram", "youtube", "whatsapp", "telegram", "weibo", "skip to content", "skip to main content", "skip navigation", "toggle navigation", "read more", "more", "show more", "load more", "view all", "see all", "comments", "leave a comment", "leave a reply", "reply", "related posts", "related articles", "recent posts", "popular posts", "all rights reserved", "首页", "主页", "网站首页", "返回首页", "关于我们", "关于", "联系我们", "联系方式", "登录", "注册", "登陆", "退出", "会员中心", "个人中心", "购物车", "搜索", "菜单", "网站地图", "帮助", "帮助中心", "常见问题", "新闻", "新闻中心", "资讯", "产品中心", "产品", "服务", "招聘", "加入我们", "诚聘英才", "人才招聘", "友情链接", "隐私政策", "隐私声明", "服务条款", "用户协议", "使用条款", "免责声明", "法律声明", "版权声明", "广告服务", "广告合作", "意见反馈", "投诉建议", "客服中心", "在线客服", "订阅", "归档", "分类", "标签", "上一篇", "下一篇", "上一页", "下一页", "上一章", "下一章", "尾页", "末页", "返回", "返回顶部", "返回列表", "返回目录", "打印", "打印本页", "关闭", "关闭窗口", "分享", "分享到", "收藏", "收藏本站", "设为首页", "加入收藏", "加入书签", "评论", "发表评论", "我要评论", "查看评论", "回复", "点赞", "转发", "微信", "微博", "新浪微博", "腾讯微博", "QQ空间", "qq空间", "qq好友", "微信好友", "朋友圈", "豆瓣", "人人网", "阅读全文", "查看全文", "查看更多", "更多", "展开全文", "相关阅读", "相关文章", "相关推荐", "相关新闻", "热门文章", "热门推荐", "最新文章", "推荐阅读", "previous page", "next page", "show all", "accept", "accept all", "reject all", "manage", "allow", "decline", "got it", "i accept", "i agree", "显示全部", "正文", "猜你喜欢", "扫一扫", "扫码关注", "手机版", "电脑版", "触屏版", "繁体", "简体", "繁體中文", "首頁", "登入", "註冊", "搜尋", "關於我們", "聯絡我們", "上一頁", "下一頁", "隱私權政策"]
)  # fmt: skip
NETWORK = "facebook|twitter|x|linkedin|reddit|pinterest|tumblr|instagram|whatsapp|telegram|e-?mail"
CHINESE_NETWORK = "微信|微博|新浪微博|腾讯微博|朋友圈|qq空间|qq好友|微信好友|qq|豆瓣|人人网"
# Lines that say nothing but one of these go wherever they stand, by how they begin.
ALONE = {
    "click": r"click here(?: to (?:enlarge|expand|share|subscribe|view|see|download|continue|read|register|log ?in|sign ?up).{0,40})?",
    "read learn continue keep": r"(?:read|learn) more(?: about us)?|(?:continue|keep) reading(?: .{0,60})?",
    "skip": r"skip to (?:main )?(?:content|navigation)|skip navigation",
    "share tweet pin like follow": rf"(?:share|tweet|pin|like) (?:this |us )?(?:(?:page|post|article|story)|(?:(?:on|via|to|with) )?(?:{NETWORK})(?:[ ,|/]+(?:{NETWORK}))*)|share this|tweet this|follow us(?: on (?:{NETWORK}).{{0,40}})?",
    "next previous older newer prev back": r"(?:next|previous|older|newer|prev) (?:post|posts|article|entry|story|entries|comments)(?:: .{0,80})?|back to (?:top|home|blog)",
    "leave post add write no": r"(?:leave|post|add|write) a (?:comment|reply)|no comments(?: yet)?",
    "log sign": r"(?:log|sign) in to (?:comment|reply|continue).{0,30}|sign up for (?:our|the) .{0,60}",
    "please enable javascript your this you": r"(?:please )?enable javascript .{1,80}|javascript (?:is (?:disabled|required)|must be enabled).{0,80}|(?:your|this) browser (?:does not|doesn't) support .{1,80}|you need to enable javascript .{0,60}|you (?:may|might) also (?:like|enjoy)",
    "we this our by": r"(?:we|this (?:web)?site|our (?:web)?site) uses? cookies(?:(?: (?:to|and|on|for|so|in) |[.,!;]).{0,160})?|by (?:using|continuing (?:to (?:use|browse))?) ?(?:this|our|the) (?:web)?site,? you (?:agree|accept|consent).{0,120}",
    "accept reject manage allow decline cookie": r"(?:accept|reject|manage|allow|decline)(?: all)? cookies?(?: settings)?|cookie (?:settings|preferences|notice)",
    "subscribe": r"subscribe to (?:our|the|my) (?:newsletter|blog|channel|feed|mailing list).{0,40}",
    "powered": r"powered by .{1,40}",
    "advertisement sponsored": r"advertisement|sponsored (?:content|links?)",
    "上一 下一": r"(?:上|下)一[篇章](?:[:：].{0,60})?",
    "返回 回到": r"(?:返回|回到)(?:首页|顶部|列表页?|上一级)",
    "点击 单击": r"(?:点击|单击)(?:查看|阅读|展开|加载)(?:更多|全文|原文|大图).{0,6}",
    "阅读 查看 展开 加载": r"(?:阅读|查看|展开|加载)(?:全文|原文|更多(?:内容|评论)?)|(?:阅读|浏览)(?:次数|量|数)[:：] ?[0-9,]{1,9}次?",
    "分享": rf"分享(?:到|至)[:：]?(?:{CHINESE_NETWORK}|[ 、|,，/])*",
    "本站 本网 我们": r"(?:本站|本网站|我们).{0,6}使用.{0,6}cookies?.{0,60}",
    "接受 同意 拒绝": r"(?:接受|同意|拒绝)(?:所有|全部)?cookies?",
    "请启 请打 请开": r"请(?:启用|打开|开启)(?:浏览器的?)?javascript.{0,30}",
    "未经": r"未经(?:授权|许可|允许|书面授权|本站授权).{0,12}(?:不得|禁止|严禁|请勿)转载.{0,12}",
    "扫描 长按 识别 扫码 扫一": r"(?:扫描?|长按|识别)(?:上方|下方|上图|下图|图中)?.{0,4}二维码.{0,30}|(?:扫一扫|扫码),?，?(?:关注|分享|下载|手机).{0,20}",
    "关注 欢迎": r"(?:欢迎)?关注(?:我们的?|本站)?.{0,8}(?:微信)?公众号.{0,20}",
    "责任 责编": r"(?:责任编辑|责编)[:：].{0,20}",
    "发表 我要 登录": r"(?:发表|我要|登录后)(?:评论|发表评论)",
    "设为 加入 收藏": r"(?:设为首页|加入收藏|收藏本站)",
    "当前 您的 您现 您当 你的 你现": r"(?:当前|您(?:现在|当前)?的?|你(?:现在|当前)?的?)(?:所在)?位置[:：].{0,80}",
    "猜你 相关 热门 推荐": r"猜你喜欢[:：]?|(?:相关|热门|推荐)(?:阅读|文章|推荐|新闻)[:：]",
}
# The owner's line at a page's foot; it goes among the last lines only, since licences and code begin with it.
FOOT = re.compile(
    r"[^#*/%;\"`=:]{0,20}(?:©|\(c\)|copyright) ?(?:©|\(c\))? ?(?:19|20)[0-9]{2}(?: ?[-–—] ?(?:(?:19|20)[0-9]{2}|now|present))?(?:[ ,.].{0,80})?|all rights reserved\.?|"
    r".{0,40}(?:版权所有|著作权所有|保留所有权利|翻版必究|保留一切权利).{0,60}|.{0,20}icp[备證证]?[0-9号第 -]{4,20}.{0,30}|.{0,6}公网安备 ?[0-9]{10,20}号?",
    re.IGNORECASE,
)
FOOT_WORDS = ("©", "(c)", "copyright", "rights reserved", "版权", "著作权", "保留", "翻版", "icp", "安备")
FOOT_LINES, LONGEST = 10, 200
EDGE = r"[\s«»‹›<>←-↓.…|·•*\[\]【】()（）▲▼:：!！-]*"
STARTS = {start: rf"{EDGE}(?:{rule}){EDGE}" for starts, rule in ALONE.items() for start in starts.split()}
FIRST = re.compile(r"[\s«»‹›<←-↓|·•*\[【(（▲▼-]*([A-Za-z]+|[\u4e00-\u9fff]{2})")
FIRSTS = re.compile("\n" + FIRST.pattern)  # of all lines of "\n" + text, as quick as one match
BETWEEN = re.compile(r"\s*[|｜>»›·•丨┊]\s*|\s+/\s+|\s{2,}|\t|\u3000+|(?<=[\u4e00-\u9fff])\s+(?=[\u4e00-\u9fff])")
WORD_STARTS = {match[1].lower() for word in WORDS if (match := FIRST.match(word))}
ALL_STARTS = WORD_STARTS.union(STARTS)


def boilerplate(text: str) -> str:
    """Removes lines of menus, notices and buttons.

    >>> boilerplate("Home | About | Contact\\nThe text. It has cookies.\\nRead more »\\n© 2020 Example Ltd.\\n")
    'The text. It has cookies.\\n'
    >>> boilerplate("首页 > 新闻 > 正文\\n版权是作者的权利。\\n上一篇：春天\\n版权所有 © 某某公司\\n")
    '版权是作者的权利。\\n'
    """
    if "\n" not in text:
        return text  # the only line is no frame of anything
    gone, words = _frames(text) if _may_be_framed(text) else (set[int](), list[int]())
    tail = text[-(FOOT_LINES + 2) * LONGEST :].lower()
    if not words and not any(map(tail.__contains__, FOOT_WORDS)):
        lines = text.split("\n") if gone else []
    else:
        lines = text.split("\n")
        full = [place for place, line in enumerate(lines) if line and not line.isspace()]
        foot = ((place, lines[place]) for place in full[-FOOT_LINES:])
        gone.update(place for place, line in foot if len(line) <= LONGEST and FOOT.fullmatch(line.strip()))
        gone |= _menus(words, full, gone)
    return "\n".join(line for place, line in enumerate(lines) if place not in gone) if gone else text


def _may_be_framed(text: str) -> bool:
    """Says whether a line begins like one of navigation: of most texts none does."""
    return not ALL_STARTS.isdisjoint(map(str.lower, FIRSTS.findall("\n" + text)))


def _frames(text: str) -> tuple[set[int], list[int]]:
    """Which lines say nothing but one of ALONE or are menus; which are lone words of navigation."""
    gone: set[int] = set()
    words: list[int] = []
    for place, line in enumerate(text.split("\n")):
        if line and len(line) <= LONGEST and (first := FIRST.match(line)):
            start = first[1].lower()
            if start in STARTS and _pattern(STARTS[start]).fullmatch(line):
                gone.add(place)
            elif start in WORD_STARTS:
                if _word(line) in WORDS:
                    words.append(place)
                elif _is_menu(line):
                    gone.add(place)
    return gone, words


@functools.cache
def _pattern(rule: str) -> re.Pattern[str]:  # when a line first begins like it: all of them take 15 ms
    return re.compile(rule, re.IGNORECASE)


def _word(line: str) -> str:
    return line.strip(" \t\u3000\xa0<>|·•*»«›‹→←[]【】:：-").lower()


def _is_menu(line: str) -> bool:
    parts = [part for part in BETWEEN.split(line.strip()) if part]
    return len(parts) > 1 and all(_word(part) in WORDS for part in parts)


def _menus(words: list[int], full: list[int], gone: set[int]) -> set[int]:
    """Returns the lone words of navigation of which three follow each other, or two where the text begins or ends."""
    left = [place for place in full if place not in gone]
    rank = {place: number for number, place in enumerate(left)}
    found: set[int] = set()
    run: list[int] = []
    for place in [
        *(place for place in words if place in rank),
        -1,
    ]:  # "All rights reserved" is gone as the owner's line
        if run and (place < 0 or rank[place] != rank[run[-1]] + 1):
            at_edge = rank[run[0]] == 0 or rank[run[-1]] == len(left) - 1
            if len(run) >= (2 if at_edge else 3):
                found.update(run)
            run = []
        run.append(place)
    return found
