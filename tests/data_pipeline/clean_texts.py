"""Clean texts that the tests of the cleaning rules plant dirt in."""

import itertools
import random

from data_pipeline.clean import clean_many

ENGLISH = (
    "The harbour was quiet in the early morning, and only a few boats had left for the open sea.",
    "She opened the letter slowly, because she knew what it would say and did not want to read it.",
    "Most of the houses along the river were built before the war, when timber was cheap.",
    "It is not easy to explain why the experiment failed, but the second attempt gave a better result.",
    "“Nobody asked you,” he said, and the room fell silent until the kettle began to whistle.",
    "In spring the farmers move their sheep to the hills, where the grass is fresh and the air is cool.",
    "A good dictionary tells you how a word is used, not only what it means – that is the point.",
    "They walked for three hours without meeting anyone who could tell them the way to the village.",
    "The committee will publish its report in May; until then the old rules stay in force.",
    "Rain fell on the tin roof all night, which made it hard for the children to sleep.",
    "He’d been to the café twice that week, and each time the waiter remembered his name.",
    "When the lights went out, the audience thought it was part of the play and applauded.",
)
CHINESE = (
    "清晨的港口很安静，只有几条船已经出海，远处传来海鸥的叫声。",
    "她慢慢地打开那封信，因为她知道里面写的是什么，却不想马上读完。",
    "河边的大多数房子都是战前建造的，那时候木材非常便宜。",
    "很难解释第一次实验为什么失败，不过第二次得到了更好的结果。",
    "“没有人问你。”他说完以后，屋子里安静下来，直到水壶开始响。",
    "春天的时候，农民把羊群赶到山上去，那里的草又新鲜又多。",
    "一本好的词典告诉你怎样使用一个词，而不仅仅是它的意思。",
    "他们走了三个小时，没有遇到一个能告诉他们去村子怎么走的人！",
    "委员会将在五月公布报告；在此之前，旧的规定仍然有效。",
    "雨整夜打在铁皮屋顶上，孩子们怎么也睡不着，只好起来听故事。",
    "灯突然灭了，观众以为这是戏的一部分，于是都鼓起掌来……",
    "《春晓》是唐代诗人孟浩然的作品，几乎每个中国孩子都会背诵。",
)
OTHERS = (
    "Les élèves étaient déjà arrivés à l’école quand la pluie a commencé ; c’était « très drôle », dit-il. À bientôt, où que tu sois !",
    "Die Straße führt über den Fluß bis zur alten Mühle. „Das ist ja schön“, rief die Größte; „Ä“ und „Ö“ sind Umlaute. CAFÉ…",
    "El niño comió piña en la montaña. ¿Quién sabe cuándo volverá? «Mañana», respondió José. ALLÍ… “Él”",
    "São João é amanhã. A IRMÃ disse: “NÃO”. Três maçãs, por favor; às vezes não há pão.",
    "Włącz światło, proszę. Čeština má háčky, română are ș și ț, a türkçe ğ harfini kullanır.",
    "春はあけぼの。やうやう白くなりゆく山ぎは、少しあかりて、カタカナもある。",
    "Съешь же ещё этих мягких французских булок, да выпей чаю. Ёлка — «дерево».",
    "學而時習之，不亦說乎？有朋自遠方來，不亦樂乎？人不知而不慍，不亦君子乎？",
)
CODE = '''import json


def load(path: str) -> dict[str, int]:
    """Reads counts; `&amp;` in them stays as it is."""
    with open(path, encoding="utf-8") as file:
        rows = [json.loads(line) for line in file if line.strip()]
    return {row["name"]: row["count"] for row in rows}


# Copyright (c) 2020 Somebody
if __name__ == "__main__":
    for name, count in sorted(load("counts.jsonl").items()):
        print(f"{name}: {count:,}  {count / 2:.1f} [{name[0]}]")
        if name == "Home" or not count:
            continue
'''


def documents(sentences, count, seed=0):
    """Makes clean documents of three to five paragraphs, no two sentences of one alike."""
    rng = random.Random(seed)
    space = "" if sentences is CHINESE else " "
    made = []
    for _ in range(count):
        chosen = rng.sample(sentences, len(sentences))
        cuts = [0, *sorted(rng.sample(range(2, len(chosen) - 1), rng.randint(2, 4))), len(chosen)]
        made.append("\n\n".join(space.join(chosen[a:b]) for a, b in itertools.pairwise(cuts) if a < b) + "\n")
    return made


def clean_record(record, config):
    """The cleaned record, or the reason to drop it."""
    (cleaned,) = clean_many([record], config)
    return cleaned.reason or cleaned.record
