"""Which words does the search for names of people go by?

Given names of English: names that were common in the United States in the last hundred years (statistics of the Social Security
Administration, public domain), their short forms and some that are common elsewhere. Chinese surnames: the hundred or so commonest
(statistics of the Ministry of Public Security), without 向, which is mostly "to". Both were written down by hand, not copied from a file
of these statistics, so a common name may be missing. Words that begin or end with a surname's character: those of two characters in
the dictionary of jieba 0.42 (MIT licence, copyright 2013 Sun Junyi), and some more.
"""

GIVEN = frozenset(
    """
    James Michael Robert John David William Richard Joseph Thomas Christopher Charles Daniel Matthew Anthony Mark
    Donald Steven Andrew Paul Joshua Kenneth Kevin Brian Timothy Ronald George Jason Edward Jeffrey Ryan Jacob Nicholas
    Gary Eric Jonathan Stephen Larry Justin Scott Brandon Benjamin Samuel Gregory Alexander Patrick Frank Raymond Jack
    Dennis Jerry Tyler Aaron Jose Adam Nathan Henry Zachary Douglas Peter Kyle Noah Ethan Jeremy Walter Keith Austin
    Roger Terry Sean Gerald Carl Dylan Harold Jesse Bryan Lawrence Arthur Gabriel Bruce Logan Billy Joe Alan Juan
    Elijah Willie Albert Wayne Randy Mason Vincent Liam Roy Bobby Caleb Bradley Russell Lucas Mary Patricia Jennifer
    Linda Elizabeth Barbara Susan Jessica Karen Sarah Lisa Nancy Sandra Betty Ashley Emily Kimberly Margaret Donna
    Michelle Carol Amanda Melissa Deborah Stephanie Rebecca Sharon Laura Cynthia Dorothy Amy Kathleen Angela Shirley
    Emma Brenda Pamela Nicole Anna Samantha Katherine Christine Debra Rachel Carolyn Janet Maria Olivia Heather Helen
    Catherine Diane Julie Victoria Joyce Lauren Kelly Christina Ruth Joan Judith Evelyn Hannah Andrea Megan Cheryl
    Jacqueline Teresa Abigail Sophia Martha Sara Gloria Janice Kathryn Ann Isabella Judy Charlotte Julia Grace Amber
    Alice Jean Denise Frances Danielle Marilyn Natalie Beverly Diana Brittany Theresa Kayla Alexis Doris Lori Tiffany
    Virginia Madison Tom Tim Mike Bob Jim Dan Ben Sam Alex Chris Nick Steve Matt Dave Andy Greg Ken Ron Jeff Tony Phil
    Ed Ted Fred Luke Oliver Harry Charlie Simon Martin Ian Neil Stuart Graham Colin Nigel Trevor Derek Gareth Craig
    Darren Dean Lee Leon Oscar Leo Max Theo Hugo Isaac Philip Ralph Louis Kate Katie Jane Anne Lucy Chloe Sophie Ellie
    Ella Mia Ava Lily Holly Molly Beth Claire Clare Gemma Zoe Alison Hazel Fiona Louise Rosie Maya Nina Eva Eleanor
    Harriet Irene Rita Wendy Tracy Dawn Paula Lynn Leah Naomi Erin Vanessa Monica Bethany Kirsty Ellen Joanne Sally
    Mohammed Muhammad Mohamed Ahmed Ali Omar Hassan Fatima Aisha Carlos Luis Jorge Miguel Pedro Antonio Francisco
    Fernando Javier Rosa Carmen Ana Elena Lucia Pierre Jacques Hans Klaus Giovanni Marco Ivan Olga Sergei Natasha Raj
    Priya Sanjay Anil Wei Ming Yuki Hiroshi Kenji Adrian Alfred Allen Alvin Andre Barry Bernard Brent Brett Cameron
    Calvin Cecil Chad Chester Clarence Claude Clayton Clifford Clinton Clyde Cody Colton Connor Corey Cory Curtis Dale
    Damian Danny Darrell Darryl Derrick Devin Dominic Duane Dustin Dwayne Dwight Earl Eddie Edgar Edwin Elliot Ernest
    Evan Felix Floyd Francis Frederick Garrett Gavin Gene Geoffrey Gilbert Glen Glenn Gordon Harvey Hector Herbert
    Herman Howard Isaiah Jaime Jake Jared Jay Jeffery Jerome Jesus Jimmy Joel Johnathan Johnny Jon Jonathon Jordan
    Julian Karl Kelvin Kenny Kirk Kurt Lance Leonard Leroy Leslie Lester Levi Lewis Lloyd Lonnie Malcolm Manuel Marcus
    Mario Marvin Maurice Melvin Mathew Micheal Milton Mitchell Morgan Nathaniel Nolan Norman Owen Perry Preston Ramon
    Randall Raul Reginald Ricardo Rick Ricky Robin Rodney Roland Ronnie Ross Ruben Salvador Sebastian Sergio Seth Shane
    Shannon Shaun Shawn Sheldon Sidney Spencer Stanley Taylor Terrance Terrence Tanner Todd Tommy Travis Tristan Troy
    Tyrone Vernon Victor Wade Warren Wesley Adriana Agnes Alexandra Alicia Alisha Allison Alyssa Angelica Angelina
    Anita Annette Annie April Ariana Arlene Audrey Aubrey Bernice Bertha Bonnie Brandi Brandy Briana Brianna Bridget
    Brooke Caitlin Candace Carla Carly Carole Caroline Carrie Casey Cassandra Cassidy Cathy Charlene Chelsea Christy
    Cindy Colleen Connie Courtney Dana Deanna Debbie Desiree Edith Edna Eileen Elaine Elsie Erica Erika Esther Ethel
    Felicia Florence Gabriella Gail Geraldine Gina Gladys Glenda Gwendolyn Haley Heidi Ida Ingrid Irma Isabel Isabelle
    Jackie Jamie Jasmin Jasmine Jeanette Jeanne Jenna Jennie Jenny Jillian Joann Joanna Jocelyn Jodi Josephine Juanita
    June Kaitlin Kaitlyn Karla Kara Katelyn Kathy Katrina Kelli Kellie Kelsey Kendra Kerry Kim Krista Kristen Kristi
    Kristin Kristina Kristine Krystal Lacey Latoya Lillian Lindsay Lindsey Loretta Lorraine Lucille Lydia Lynda
    Mackenzie Makayla Mallory Marcia Margarita Marie Marisa Marissa Marjorie Maureen Maxine Meghan Melanie Melinda
    Meredith Michele Mildred Mindy Miranda Myrtle Nichole Nora Norma Paige Patty Pauline Peggy Phyllis Priscilla
    Rachael Ramona Regina Renee Rhonda Roberta Rosemary Roxanne Sabrina Selena Sheila Shelby Shelly Sherri Sherry
    Silvia Sonia Sonya Stacey Stacy Stella Suzanne Sylvia Tabitha Tamara Tammy Tanya Tara Tasha Tina Toni Tonya Tricia
    Valerie Vera Veronica Vicki Vickie Vivian Wanda Whitney Wilma Yolanda Yvonne Abdul Alastair Annabel Beverley Callum
    Clive Conor Damien Declan Duncan Elliott Gillian Hilary Hugh Josh Kieran Leigh Lesley Lynne Mandy Marc Marian
    Mohammad Nicola Reece Rhys Stewart Terence Toby Tracey
    """.split()  # noqa: SIM905
)

SURNAMES = frozenset(
    "王李张刘陈杨黄赵吴周徐孙马朱胡郭何林高罗郑梁谢宋唐许韩邓冯曹彭曾肖田董潘袁蔡蒋余于杜叶程魏苏吕丁任卢姚沈钟姜崔谭陆范汪廖石金韦贾夏付方邹熊白孟秦邱侯江尹薛闫段雷龙黎史陶贺毛郝顾龚邵万覃武钱戴严莫孔常"
    "汤萧傅康温施牛樊葛邢齐易乔伍庞颜倪庄聂章鲁岳翟殷詹申欧耿关兰焦俞左柳甘祝包宁尚符舒阮柯纪梅童凌毕季裴霍涂苗曲盛翁骆靳蒙鲍喻祁蒲滕屈饶牟艾穆卓吉缪文赖洪安谷冉游辛柴房尤简麦褚娄窦戚岑宫费卜冷晏席卫柏瞿佟臧闵苟邬卞姬仇栾隋刁沙巫寇桑郎甄虞敖巩佘"
)
COMPOUND = frozenset("欧阳 上官 司马 诸葛 司徒 夏侯 皇甫 尉迟 东方 慕容 令狐 长孙 端木 公孙 独孤 南宫 西门".split())  # noqa: SIM905

# What surrogates are made of. Surnames that none of the above is, with given names of characters that are no surname.
OTHER_SURNAMES = "亓仉仝佴俎冼厍呙啜嵇庹弭昝晁暨殳沃浦濮璩眭禹竺糜羿胥茹荀荆蒯蔺虢訾逄逯郄郇郏郗郜鄢阙隗隽雒鞠麴蔚芮莘菅郤厉匡荔郦酆钮阚鄞於宦邰"
OTHER_COMPOUND = "澹台 公冶 宗政 轩辕 濮阳 赫连 拓跋 闻人".split()  # noqa: SIM905
OTHER_GIVEN = "伟芳娜敏静丽强磊军洋勇艳杰娟涛超秀霞刚桂英慧建利志玉国新海红永春玲辉松琳雪莉飞鹏浩宇轩泽晨思雨嘉佳欣怡梦琪瑶婷颖雅诗若楠媛露萍莹晶菲岚倩怀祥福广元胜学彬富荣友裕河哲亮诚敬震振壮群豪启兴良固策冠"
# Names in letters that nobody has: 32 x 8 x 32.
HEADS = "ald bram cal corv dern eld fenn gor hald isk jor kel lor mar nev orl per quil ros sel tav ulm var wes yor zan brel dros fal grev hest kestr".split()  # noqa: SIM905
MIDDLES = "a e i o an en or il".split()  # noqa: SIM905
TAILS = "dane mere vyn brik thel gast wick dore lund phor rost vane ckle dray fyr gond hurst joth krin lasp moth nell prey quin rith stam tarn vold wyth zell bryn cray".split()  # noqa: SIM905

# 于 ends 对于: behind such a character this one is no surname.
ENDS_A_WORD = {
    "王": "国亲君女魔霸汉猴郡药父勤藩英蝠贤先蜂文蜀藏商项帝龙阎称", "李": "行桃", "张": "主一紧扩夸千两几纸慌开嚣舒声三四每半万铺伸多皮乖五二关整", "陈": "条铺痛", "杨": "意", "黄": "宜昏淡发蜡蛋硫杏雄扫引枯卵地炎浅鹅嫩橙泛棕萎微雌内焦", "赵": "后", "吴": "东",
    "周": "四西一每上商北两本后东外圆下几不数牙三六", "徐": "徐", "孙": "公儿外长徒侄世重子祖", "马": "罗军骑上下兵白驸战立出皇骏乘骡拍荷飞黑策车转落野鞍探赛跃海利木跑斑巴河牧响跳奔走良驿特驼金牝纸换铁青西犬歇烈母劣塘龙义拉角藏", "胡": "二板柴", "郭": "城", "何": "如任为几奈若缘",
    "林": "森少园造树山翰竹如密松绿东榆农巴苏洛吉美峰碑杏塔成椰果上武桂柏丛", "高": "提最升新通身高增抬职特清登走上音跳拔加超比中瘦标梵爬崇", "罗": "开波喽搜新暹网绫收", "郑": "南", "梁": "桥季鼻钢横脊桁汴山屋悬房栋主高", "谢": "感代拜酬称致叩答凋辞重多道谢", "宋": "北南唐仿", "唐": "隋南荒后汉盛晚初颓",
    "许": "也允不或容准特少些赞只几稍如称期", "曾": "不未", "肖": "不生", "田": "油农屯煤耕稻和水丰梯种良福官气棉莆公心本青造西山新下盐肥营中旱上丹麦", "董": "骨古", "蔡": "新上", "余": "其业万剩多有残十百千盈富月课无结扶空节夫",
    "于": "由对位关终用属处至在生等出低基过高善便见源始置易建多鉴敢适限趋急介富产陷少溶乐利归居优忠勇难忙长精免迫先立定苦单近次宜擅强重濒负安缘勤惯甘碍疏同逊寓鲜疲拘助融耽", "叶": "茶中落荷树枝烟绿阔一复九半针红初草千嫩竹单枫三菜花枯碎桨金败莲双万木新二下",
    "程": "过工课进车里章方射远行历议流高航全日编路前规专启中近病一短起疗旅教征赛返音冲携回光兼鹏单余二扬量登途游", "魏": "北后西东汉", "苏": "江复姑流紫乌巴", "丁": "家兵补壮园团男征",
    "任": "主担责信历出兼现重选上胜时专接就后新连升继前委充常调改一首聘卸己听放到离赴留初转下三两林", "卢": "巴", "沈": "辽", "钟": "分编秒时警甬闹铜丧撞", "姜": "生干", "陆": "安登水内着海程古", "范": "规模示防典风就垂师", "汪": "一汪",
    "石": "岩化山矿钻萤晶陨砖青乱长碎结条基辉砾磁礁卵火怪砂沸矢柱离箭硝尖刻土磐菊硅燧闪蛭锆碑电飞矸浮木信顽积碣投铁霞药去油英奇玉宝巨采", "金": "资基黄冶现奖合贴后包租千薪重罚镏瑞佣白紫本锡镀税真押巴定纯五淘万描掘美鎏年礼赎酬赏泥赤鸣砂铂股辽中错乌点织开", "韦": "室", "贾": "商", "夏": "江华西宁初今消半临炎盛",
    "付": "支对应预交分托偿给垫首兑拨赔收缴",
    "方": "地双西对东北南一官中军四立各上警敌前后两多日见远美处何成平史药万比下买己女配我三复男卖正校俄秘有外八六五偏同朔开单甲院土陶公良塌以资法左乙十右厂长英验无组鬼游本医魔贷端反侧借局乘", "熊": "黑狗棕熊",
    "白": "蛋空雪苍黑洁惨纯清坦太对灰表发煞平道直长抢漂独青斑辩银念增说茭乳自月告眼执素葱明白花", "秦": "先前后三西", "侯": "公闽诸",
    "江": "长浙汉荆清九珠潜之渡沿镇西庐丽枝松新平东湘锦怒三湛漓嫩两闽乌临赣岷北沅阳龙晋川右柳韩同曲沱内浦横信黔瓯汀涪丹香芷滨沪下温望浔浑", "尹": "府", "薛": "怯", "段": "阶手一中河北地波江两东路分时前西南片频几身九区各号末线三半该四唱十二", "雷": "地扫水风炸打惊闷排手防鱼",
    "龙": "神蟠恐九火天卧青雅水飞蛟和海长人五合文扎云群双独沙巨尼", "黎": "巴昌", "史": "历刺御通明太简文清国长古病战正秘野青党修外杂信诗女家", "陶": "彩灰熏制馆定釉黑", "贺": "庆可恭祝道", "毛": "眉羊羽皮睫绒毫鞭发鸡长纤三汗根寒脱刚体茸鹅鬃翎细尾胎阴腺", "顾": "照不回只兼环光四眷主关看",
    "万": "千百万多数十余几一亿三两五上二四六八七", "武": "动学核英建勇人用文比威玄尚", "钱": "金花赚有价值要挣出铜本工借银赌给掏用洗交毛赏制纸省赔现饭酒捞洋付零闲存余脚黑房古凑费", "戴": "拥穿佩推配爱", "严": "庄尊威戒森从不谨", "莫": "切", "孔": "面鼻脸瞳气穿多钻毛桥圆针耳微打射",
    "常": "非通经正常日异平寻时往失中反无如照家纲惯太超伦定五", "汤": "鸡菜鱼茶泡面商热肉清", "傅": "太师", "康": "健保建永少小", "温": "气高低积水体升降常重保室加等测恒增地", "施": "实措设恩西布东兼", "牛": "牦公吹犀蜗水斗野牯奶耕牵金母肉海放牧五蒙铁牡羚红乳头黄", "樊": "襄", "葛": "纠瓜长",
    "齐": "一整北不南看取亚聚德对备", "易": "容贸交不轻简周网路穆平和变中市", "伍": "队入退为行落配", "庞": "脸面", "颜": "汗笑红容", "倪": "端", "庄": "村茶山端农饭皇坐方枣", "章": "文勋本规奖典奏宪九党一篇印违公徽像图臂各诗领豫报建几肩盖乐简", "鲁": "秘粗巴愚德", "岳": "南五山北中",
    "申": "重引甲庚", "欧": "西东北中南印旅", "关": "机有相攻无海潼事公开入过难闭进把南牙下东出城阳韶通边北西年报攸马武双闯雄网壶水交", "兰": "荷波芬米香楼西罗锡宜埃伊德奥图", "焦": "聚心炼三烧中", "左": "极相江支", "柳": "垂柽", "甘": "不陕心", "祝": "庆祷预恭",
    "包": "面承一沙背提书荷红皮脓腰打挎心钱纸布草两药豆几转山坟三麻发邮拎", "宁": "咸辽安南苏西海熙建江济永广甘洛会沪宁伊长泰兴镇", "尚": "时高风习和崇", "符": "相字不音兵虎", "纪": "世年军违本经法纲党风", "梅": "腊杨", "童": "儿顽女孩牧书神幼娈男学仙门报盲", "凌": "欺侵防", "毕": "完",
    "季": "赛冬夏春秋四雨月旺两淡旱一首干换每", "霍": "挥", "涂": "糊滩喷填海当", "苗": "鱼疫育火幼青树根菌秧种植出麦", "曲": "戏弯歌扭一乐作九舟歪昆舞插词序散卷组委河套唱屈双蜷神琴衷名元曲谱红夜", "盛": "强旺兴繁鼎丰茂全昌日气东", "翁": "渔富老", "蒙": "启内欺迷沂承", "喻": "比隐譬讽", "蒲": "菖",
    "屈": "委不冤叫", "饶": "富求上丰讨告", "牟": "中", "穆": "肃", "吉": "台勿",
    "文": "英论中正人诗天散语水作汉外全铭本一公原经成条满撰译下梵祭金法短碑檄杂汇艺德行藏分征此欧和骈建课图国注俄戏咨榜日今该发电引著韵华批宇换呈凯遗程序异回佚美载篆蒙时文学洋报密俊古明斯", "赖": "依信无达抵耍不仰诬倚", "洪": "防抗泄分蓄滞",
    "安": "长公西治不平延远永请德保临黄国建红天石淮万北东南吉兴泰问新六心海偏江雅武瑞镇广君早集民欠宁晚华文淳毫", "谷": "河山峡光稻曼五深硅裂低沟包幽上溪雪阳水空槽平第", "游": "旅上下中导陆出漫回春浮畅周洄网云遨巡西梦交神郊夜远环伴转仙", "辛": "艰细", "柴": "火砍干木劈打烧",
    "房": "住厨书乳厢病楼客牢厂子药买上新购平营库建机洞心租套卧票禅民门洋盖帐闺草分公瓦危耳账茶私伙茅正产厅包同空偏班远二灶仓土期蜂用丹天售磨柴旧廊号", "尤": "蚩", "简": "精竹书", "麦": "丹荞黑稻莜", "窦": "疑鼻", "戚": "亲外贵悲",
    "宫": "皇故清进后寝迷东天行地西斋南九离守月春冬神刮三蟾丹", "费": "消收经免浪资花学军耗话自付团公电税白运杂稿保交计路缴车破会水药旅用餐枉规靡诊盘", "卜": "萝占未", "冷": "寒冰清制冷生发干风过致", "席": "主出首列苇筵酒缺一宴议入离草次即坐炕座联芦凉", "卫": "保防自护守警后捍门前环中拱厂禁右近", "柏": "桐侧", "姬": "舞",
    "仇": "报复冤结记私血世寻", "沙": "长泥黄华风新荆西流沙南海加细尘治固防豆", "巫": "女", "寇": "倭日流草司贼穷", "桑": "沧蚕农", "郎": "女新太法情夜", "虞": "上无疏",
}  # fmt: skip
# 高 begins 高中: before such a character this one is no surname.
BEGINS_A_WORD = {
    "王": "国室家位者牌导砾屋朝爷公府子八宫侯道妃后权族", "李": "子", "张": "掖本开贴嘴口罗扬望", "陈": "述列设旧", "杨": "柳树",
    "黄": "河金冈色州陂土昏家连陵沙山花安海鳝豆原骅纸道牌瓜埔岛疸水芪兴酒壤袍门泥油教鼬种鱼褐斑鼠鹂影裳桥牙浦素经皮体化初马雀蜡瓦衣砂页熟灯果屋友县历籍帽南观粱册队镇酱粉池檗易口焰毒权蕉节毛牛蜂铜", "吴": "县国",
    "周": "围期边年刊末长岁到二身六日一家五代三四易朝遭济颠报游初天口至室秦语表族润皮转密旋全详折", "徐": "州海经洋国徐", "孙": "子女",
    "马": "上路蹄头力车里场口脚桶岛褂列号队嘶灯山步厩术亚关具贼球靴约沽鬃戏河市厂奶边西川枪坑战币司皮元街融房律东门角行系江导堡骡当埃迹直店岭匹克背夫鞭鞍刀虎尾儿拉", "朱": "漆批红砂", "胡": "乱须扯诌匪话编程茬瓜同子说闹涂椒人",
    "何": "况必处以等时不在故人事种尝用苦方如者为止妨来物门日地其须年力意月许敢艇新", "林": "区业中地场带家间里下县产边内任果口蛙种网立子木",
    "高": "速度级兴中校考原手等于大温出层山低效呼尚声压举涨产档空粱高新位亢端程地分处职贵额铁家一能法检台官价炮频龄寒歌唱下楼深音教差傲点邮密调墙见炉射居烧远矮峻徒干者热发论阳估欢帽专纬架利棉腔个难踞洁士跷脚车球挑州头崖冈照足树爽领城妙参栏古倍要松息院适杆尾奏质抗工背线筒碳湖洋岛庙口湛沛根标村性数二三峰潮明僧悬薪耸昂超雅坡喊阁",
    "罗": "马家城列山干兰嗦网海湖加西织唣陀锅本甸宾那敦定川里扇利湾江店汉盘", "郑": "州重克", "梁": "州海国河城沟", "谢": "罪绝意持谢", "宋": "代朝初埠末体", "唐": "代朝宋初末县州洋天纪季诗人", "许": "多家久配都下愿国婚由州二道五行财次栋成可诺", "韩": "国语城江非美", "邓": "州县南", "彭": "州",
    "曾": "经", "肖": "像", "田": "地径间亩里产租鼠边头土单制块坛额流园野", "董": "事家源子金厥酒",
    "余": "种地家下万额年脉处亩米部孽名个实鱼暇篇座次者热架首所件条党粮辆艘力程音钱款里数毒悸项元枚味间门幅位烬三支岁切天吨日出股只剩江本尊卷例行套多台众份二量身派块则方斤张", "于": "是洋言今", "杜": "绝鹃", "叶": "片酸县腋家鞘面轮肉舌状体灯球序子", "程": "度序志式控文陆途弹程派异家", "魏": "国县",
    "苏": "联州丹区宁打北木南俄共林中杭拉式非澳园珊瓦尔浙皖斯河威萨美纳果门毗克菜醒", "吕": "剧", "丁": "卯零酸当点苯醛酮度亥香", "任": "务何期免职命教意用性由一官内选脉情课县素权原民工督凭", "卢": "湾津布", "沈": "阳城丘度雯山约安园思", "钟": "头表情鼓点摆离体会行理面声楼", "姜": "片",
    "陆": "续地游上路战相运海航架机域源定壳防家台陆棚心绩终程军", "范": "围例本式星任型志质性金兄书畴", "汪": "洋",
    "石": "首油头桥化门窟膏器碑壁湖墨子板块灰刻兽雕棉安室料匠棺榴像屋栏经墙河山人材质蜡堆匣凳砌炭片台缝级制崖鼓臼磨笋煤星岛屑刀坝槽城床坊海磙窑盐牌铲版湾塘龟马炮径叶蕊药坡蒜础方家鸡弹堤向铁花滩楼介粉砂矿沼椅梓工岭场牛浦沟木斑缸盘烟核构川存南西筑峡函英柱阶",
    "金": "融属银额钱牌花牙星轮代丝台色箔子锣利元针蛇华冠鸡国兵文奖发矿门币边铺城价质川蝶鱼条字盆家象根库杯牛领顶富铃口表熙州榜马声坛学都井靴叶饰球橘钢瓜枪粉风疮块枝匠安乡金毛谷地器志屋簪泰河水像工坤鼓钩近笔砖盏狮源农信锭量行柄廷寇镖铁线泳史主蚕节港海汇方店刀雕言童江俗书丸科猫果壶化丰刚黄光山秋",
    "夏": "天季日至代秋朝历县国夜末州都装族冬珺初", "付": "出给款费托与钱息印账现酬讫体",
    "方": "面法式向案针便言才程丈位形略可城圆始砖剂阵桌士子证术家寸格差山军巾舟志块队越生柱知药根框策平庄舱凳木头孔型塔波壶步密音理准貌济方糖竹妙塘儿信今正", "邹": "县", "熊": "市本皮掌猫熊",
    "白": "色天衣马族人家嫩果纸带洋夜酒菜骨日眼面垩蚁花圭话脸金须河浪费袍沟粉沫地蜡头令糖描斑区城瓷喉山影蛇海猫条底绸子芍灰板肉术薯质鹇烟鹅鱼卷鼠醋点帽象饭活晋鲨手种鲟棉土铁牙食药矾口边草线皮楼鲢度厅鲑猪狐匪鸡鸟音滨阳润泥字雪领宫石白发云银旗昼痴玉羊杨鹤", "孟": "买津家县浪州", "秦": "腔国代河朝山州晋川末都篆业岭", "侯": "国爵",
    "江": "南陵苏湖西夏汉北山淮水面中河豚东流段城浙底海道猪边阴州岸都户心口宁津安天孜华门左堤畔湾油村龙轮桥蓠浦阳昂川厦源原丰滩洲景干声", "段": "落家长位业子", "雷": "电击州管暴动区音观火劈体敦艇舰汞系达声霆雨鸣",
    "龙": "头门大袍泉船井舟骨山眼脉服口椅尾潭城江岭湾华灯形卷身舞首州里场马套种川游冈体象蛇葵池须车火湖河桥纹庭发陵背窑朔丹皮湫港海子兴沙哥音阳家藏科滩洋王宫凤", "黎": "族阳庶城语明", "史": "料学书记册方籍事家迹论地观略话部行坛诗实前官", "陶": "器瓷片土罐方者塑制业工艺式都埙醉冶", "贺": "海电县",
    "毛": "病尖笔皮色毯衣钱纺线孔囊毡头虫细茛子料南边坯织纱片条刺蚶豆蛋躁义果孩呢脸巾发驴竹", "顾": "及源虑念准家理问客忌",
    "万": "元吨亩岁历一年家万辆物余里分向股尾多名个头事斤户台镑民线方安块能国千种丈米州份山两宝难象状圭册次古福枚众科亿达金恶件倍张部般顷套门盏只道卷载站条支把县桶匹通代对端手乘邦片所叶发磅艘点株口行度三首颗几数峰粒根儿座锭重网朵斯例架圣缕籁成声段篇特担钟花笔样本庆幅华间袋蛇类秒目盛招回句双六克世",
    "武": "汉器昌装士力艺警官陵术将大备麻职当学人师行断夷都库打关川安戏义略技经穴会阳庙者定山冈乡场城坛火岭家系统旦兴馆部舞比口功林", "钱": "币塘包物袋款箱财粮", "严": "重格肃厉峻密谨禁寒守整惩刑酷加明家防查实打办苛紧严控州规良挺正", "莫": "非大不名亚西汉奈怪顿利", "孔": "隙融穴目雀道庙",
    "常": "常务见用规委设有绿年住数人识驻州任态量理温熟事例山备压服会情言时考值乐额性安", "汤": "杯药匙面剂团锅碗包料", "萧": "条县关", "康": "定泰亲门体县节复", "温": "度暖和带柔差州热饱室水情存润格庭病厚家湿习软言床县婉标江燥觉书岭性经灸方火控利兄泉馨",
    "施": "工行展主加放用肥压以救治济药法教洗训毒与设予政礼舍", "牛": "肉奶车筋皮市角头棚犊蛙股粪排油家气虻年尾心腿腹痘金蹄蒡马津", "樊": "城篱口建川", "邢": "台州", "齐": "名国整集发心射次唱泰胸楚根州步声全备鸣", "易": "于趣事名县学手货得发地碎用位行爆耗物州北", "乔": "装家国木", "庞": "大杂然",
    "颜": "色料面体子", "庄": "严重稼家上院头门户园", "章": "程节法句则京服", "鲁": "国南钝语比北番本莽", "岳": "家州肃南父母", "殷": "墟切代天家勤红", "申": "请报诉花明办述辩购能斥说论银冤遗领达新文仪申生根饬维光时扎", "欧": "洲盟元亚拉阳美文里式化格陆泊华",
    "关": "系于键注心闭节联中头税山上切门口东押照外内爱岛乎隘露机防西连涉掉卡平顾子帝兴张城陵灯文停紧进长锋河严镇索境闸念员厢窗吏怀", "兰": "州湖山阳大陵坪利江西兰花", "焦": "点急虑躁炭灼作距糖土化黑油煤渴炉山易墨糊痕臭枝心燥烂触黄", "左": "右手侧边臂派腿脚岸首眼路近权面方上舷膀袖下端轮拳心券翼", "柳": "州条江家城河编湾腰体树枝",
    "甘": "肃泉蔗心愿薯地草露油于州宁南孜苦美当平汞结河谷川休", "祝": "愿祷酒贺福寿", "包": "括含围袱裹装机扎金头厢揽办子容庇谷抄涵干衣月销住皮车藏膜被产房管钢养间工茎立覆络兄场囊户层吃扶封卷赔袋船河换体", "宁": "夏愿波海都城国冈宁乡县安寺陵化州汉河阳镇南宫可静肯", "尚": "书未无有且可存好善飨须远父然", "符": "合号咒箓节水兵",
    "舒": "服适畅展张坦缓心爽", "柯": "文斧", "纪": "念录律要委年事实检及元行闻子程游时略日效", "梅": "毒县州因花子", "童": "年话装心稚趣女车音子", "凌": "晨乱州虐侮辱厉空迟驾", "毕": "业竟生升比天露节宿命", "季": "节度风梁报刊军历音连泽友子", "霍": "都乱然州县",
    "涂": "料层改片炭装鸦漆饰刷布膜写色污抹", "苗": "族条头家期女苗乡语种田", "曲": "折线调子酒面艺目牌阜率谱霉解洋江阳府柄池曲式轴径水集沃律张风度意河坛剧笔", "盛": "产行大开名会京情况唐装宴事润誉典传期饭放年暑意景倡举古气业演世怒衰", "骆": "驼",
    "蒙": "古哥面受住蔽语骗牛头冤皮特逊文迪山达汉族斯药眬方城克藏胧化馆阴授学", "喻": "示", "祁": "山连县门阳州剧", "蒲": "团扇州剧包", "屈": "原服辱从指居曲伸死就膝", "饶": "有命恕", "牟": "取财利", "艾": "因地", "穆": "勒易克迪圣兰", "卓": "著然见异有行越绝",
    "吉": "利象凶安他林士庆首萨期兰时打河伯水本它泰服化列祥",
    "文": "化学章物字件艺库献书华人集革官科教凭体中本坛史职汇峰选臣帝联盲档说笔风言稿理摘采秘才士告身案法具辞静墨丑员论种胸泰治庙弱广山哥传龙思牍娱句王火豪蛤电县儿文安解戏丛海名卷赋水号保饰景存楼房虎义部斗家定场石玩牒爷意委协星钞录丘译脉心塔鸯彩台综明武雅", "赖": "以账帐掉", "洪": "涝流都大灾熙积荒州朝门河泛家炉量口",
    "安": "全排装徽陆慰定置乡心宁放庆稳葬顿内息歇阳南上详好西设生居乐身睡家插国于分盟东布源泰检丰适县享溪度眠联多化腾和边山安陵胎常卧锡那哥部肃坐知忍丘肯防踏州城济昌妥北进立宫室士利", "谷": "地物子底城主口类粒种神壳坛堆草苗",
    "游": "客行戏泳览牧人离击记子玩荡历街动艇艺说船走乐丝轮学鱼资园廊猎水移息斗方遍民憩魂程湖士伴逛者兴赏医林性驹标山节刃禽法", "辛": "苦辣酸劳格亥夷迪店醇温集然卯双", "柴": "油草火门刀堆扉房河",
    "房": "子间屋中县里门价基产舍租贷管东顶事山檐前室改主梁客源钱款市地水费展坡卡舱号车脊型角州内", "尤": "其为", "简": "单称介直历化易陋洁明史便短略要朴练捷牍述括约报本讯编谱写慢并况帖图记体爱评析笔逸策", "麦": "秸粒地角种秆片茬麸类城浪粉皮", "娄": "江",
    "宫": "廷女中灯门里墙内颈室刑调前娥观腔院来本主府庭体装者音口砂人邸词规", "费": "用力时解城心劲事率神县钱边工难", "卜": "筮者", "冷": "静却战漠淡水落酷门气冻风峻暖眼热藏冷然遇饮面场天箭寂血颤菜枪餐库食色盘轧月凉机僻傲害床峭涡声荤点语柜露觉缩浸", "席": "位卷间子面棚地次城草", "卫": "生士兵队国校铁视报志", "柏": "油斯科",
    "臧": "否", "闵": "河", "苟": "活同合", "仇": "恨人敌视家怨杀隙池洋者日", "栾": "城", "隋": "唐朝代末初", "刁": "难滑",
    "沙": "漠市发湖河俄包湾子鱼口咀洲土场沙地哑门化陀暴质盘粒里山坑砾眼袋沱棘鸡锅堤县区海州船金角枣果马岭城窝坡雕箱漏岛头伐沟量岸坪鼠瓤井", "巫": "山术峡女者础盐统陵", "桑": "海", "甄": "别选", "巩": "固县膜留",
}  # fmt: skip
LONGER_WORDS = frozenset(
    """
    高血压 高科技 高跟鞋 高峰期 高年级 高材生 高蛋白 高血脂 高风险 高技术 白大褂 白血病 白细胞 白内障 白胡子 马铃薯 马鞍山 艾滋病 葛洲坝 向日葵 牛仔裤 左撇子
    曲棍球 万维网 石家庄 欧罗巴 毛茸茸 文工团 周转率 夏商周 唐山市 黄石市 苏格兰 苏维埃 穆斯林 关节炎 江浙沪 金牛座 白羊座 康复科 毕业班 文艺部
    """.split()  # noqa: SIM905
)
