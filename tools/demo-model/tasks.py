"""The tasks that Pip learns: each function makes one short conversation, at random.

A conversation is a list of turns {"role", "content"}. Only what the assistant says is learned.
"""

import json
import random

import wordnet
from facts import (
    ANIMALS,
    CAPITALS,
    CATEGORIES,
    DAYS,
    ELEMENTS,
    LANGUAGES,
    MONTHS,
    NAMES,
    OPPOSITES,
    PAST_TENSES,
    PLURALS,
    TOPICS,
    TRANSLATIONS,
)

# The one source of chance: corpus.dialogs seeds it.
RNG = random.Random()


def pick(*options):
    """One of the arguments, or of the only argument."""
    return RNG.choice(options[0] if len(options) == 1 else options)


def user(t):
    """A turn of the person."""
    return {"role": "user", "content": t}


def assistant(t):
    """A turn of the model: the only text that is learned."""
    return {"role": "assistant", "content": t}


def system(t):
    """The system prompt."""
    return {"role": "system", "content": t}


NAME = "Pip"


def article(w):
    """`w` with its indefinite article."""
    return ("an " if w[0].lower() in "aeiou" else "a ") + w


def noisy(s):
    """The small variations of people who type: a lower-case start, no final mark, a "Please"."""
    r = RNG.random()
    if r < 0.08:
        s = s[0].lower() + s[1:]
    if r > 0.94:
        s = s.rstrip("?.")
    if 0.3 < r < 0.34:
        s = "Please " + s[0].lower() + s[1:] if not s.startswith(("What", "Who", "Is ", "Which", "How")) else s
    return s


def greet():
    """Greetings, thanks, farewells, and who Pip is."""
    g = pick("Hello", "Hi", "Hey", "Good morning", "Good evening", "Hello there", "Hi there")
    k = RNG.randrange(6)
    if k == 0:
        return [
            user(g + pick("", "!", ".")),
            assistant(pick("Hello! How can I help you today?", "Hi! What can I do for you?")),
        ]
    if k == 1:
        return [
            user(pick("How are you?", "How are you doing?", "How is it going?")),
            assistant("I am doing well, thank you! How can I help you?"),
        ]
    if k == 2:
        return [
            user(noisy(pick("Who are you?", "What is your name?", "What are you?", "Tell me about yourself."))),
            assistant(
                f"I am {NAME}, a very small language model. I can chat, count, tell short stories and answer simple questions."
            ),
        ]
    if k == 3:
        return [
            user(noisy(pick("What can you do?", "How can you help me?", "Help", "What are you good at?"))),
            assistant(
                "I can do simple math, name capital cities, find opposites, spell words, count, sort, translate simple words and tell short stories."
            ),
        ]
    if k == 4:
        return [
            user(pick("Thank you!", "Thanks!", "Thanks a lot.", "Great, thank you.")),
            assistant("You are welcome!"),
        ]
    return [user(pick("Goodbye!", "Bye!", "See you later.", "Good night.")), assistant("Goodbye! Have a nice day.")]


def arith(mx=20):
    """One operation on two numbers up to `mx` (products up to 12 x 12)."""
    o = pick("+", "+", "-", "-", "*")
    a, b = RNG.randint(0, mx), RNG.randint(0, mx)
    if o == "*":
        a, b = RNG.randint(0, min(12, mx)), RNG.randint(0, min(12, mx))
    if o == "-" and a < b:
        a, b = b, a
    r = {"+": a + b, "-": a - b, "*": a * b}[o]
    w = {"+": "plus", "-": "minus", "*": "times"}[o]
    return [
        user(
            noisy(
                pick(
                    f"What is {a} {o} {b}?",
                    f"{a} {o} {b}",
                    f"Calculate {a} {o} {b}.",
                    f"What is {a} {w} {b}?",
                    f"{a} {o} {b} = ?",
                    f"How much is {a} {w} {b}?",
                )
            )
        ),
        assistant(f"{a} {o} {b} = {r}"),
    ]


def arith2():
    """The same with two digits."""
    return arith(99)


def think():
    """A sum worked out aloud between <think> marks."""
    a, b = RNG.randint(10, 99), RNG.randint(10, 99)
    x, y = a % 10 + b % 10, a // 10 + b // 10
    return [
        user(f"What is {a} + {b}? Think step by step."),
        assistant(
            f"<think>\n{a%10} + {b%10} = {x}. {a//10*10} + {b//10*10} = {y*10}. {y*10} + {x} = {a+b}.\n</think>\n\n{a} + {b} = {a+b}"
        ),
    ]


def capital():
    """Capitals, in both directions, and continents."""
    c, k, n = pick(CAPITALS)
    r = RNG.random()
    the = "the " if c in ("United States", "United Kingdom", "Netherlands", "Philippines", "Maldives", "Gambia") else ""
    if r < 0.65:
        return [
            user(
                noisy(
                    pick(
                        f"What is the capital of {the}{c}?",
                        f"Capital of {c}?",
                        f"Tell me the capital of {the}{c}.",
                        f"Which city is the capital of {the}{c}?",
                    )
                )
            ),
            assistant(f"The capital of {the}{c} is {k}."),
        ]
    if r < 0.85:
        return [
            user(noisy(pick(f"Which country has {k} as its capital?", f"{k} is the capital of which country?"))),
            assistant(f"{k} is the capital of {the}{c}."),
        ]
    return [
        user(noisy(pick(f"On which continent is {the}{c}?", f"What continent is {the}{c} in?"))),
        assistant(f"{the.capitalize()}{c} is in {n}."),
    ]


def opposite():
    """Opposites."""
    a, b = pick(OPPOSITES)
    if RNG.random() < 0.5 and a not in ("new",) and b not in ("old", "light"):
        a, b = b, a
    return [
        user(noisy(pick(f"What is the opposite of {a}?", f"Opposite of {a}?", f'Give me the opposite of "{a}".'))),
        assistant(f"The opposite of {a} is {b}."),
    ]


def plural():
    """Plurals."""
    a, b = pick(PLURALS)
    return [
        user(noisy(pick(f"What is the plural of {a}?", f"Plural of {a}?"))),
        assistant(f"The plural of {a} is {b}."),
    ]


def past():
    """Past tenses."""
    a, b = pick(PAST_TENSES)
    return [
        user(noisy(pick(f"What is the past tense of {a}?", f"Past tense of {a}?"))),
        assistant(f"The past tense of {a} is {b}."),
    ]


def trans():
    """Single words in four languages."""
    w = pick(TRANSLATIONS)
    i = RNG.randrange(4)
    return [
        user(
            noisy(
                pick(
                    f"How do you say {w[0]} in {LANGUAGES[i]}?",
                    f"Translate {w[0]} to {LANGUAGES[i]}.",
                    f"What is the {LANGUAGES[i]} word for {w[0]}?",
                )
            )
        ),
        assistant(f"The {LANGUAGES[i]} word for {w[0]} is {w[i+1]}."),
    ]


def elem():
    """Symbols and atomic numbers."""
    n, s, z = pick(ELEMENTS)
    if RNG.random() < 0.5:
        return [
            user(noisy(f"What is the chemical symbol of {n.lower()}?")),
            assistant(f"The chemical symbol of {n.lower()} is {s}."),
        ]
    return [
        user(noisy(f"What is the atomic number of {n.lower()}?")),
        assistant(f"The atomic number of {n.lower()} is {z}."),
    ]


WORDS = sorted(
    {w for p in OPPOSITES + PLURALS + PAST_TENSES for w in p if w.isalpha()}
    | {w for v in CATEGORIES.values() for w in v}
    | {t[0] for t in TRANSLATIONS if " " not in t[0]}
)


def spell():
    """Spelling, counting letters, reversing."""
    w = pick(WORDS).lower()
    r = RNG.random()
    if r < 0.6:
        return [
            user(noisy(pick(f"Spell {w}.", f"How do you spell {w}?", f"Spell the word {w}."))),
            assistant("-".join(w)),
        ]
    if r < 0.8:
        return [
            user(noisy(f"How many letters are in the word {w}?")),
            assistant(f"{'-'.join(w)}. The word {w} has {len(w)} letters."),
        ]
    return [user(noisy(f"Reverse the word {w}.")), assistant(f"{'-'.join(w)} becomes {'-'.join(w[::-1])}: {w[::-1]}")]


def echo():
    """Repeating words or a number."""
    ws = " ".join(pick(WORDS) for _ in range(RNG.randint(1, 7)))
    if RNG.random() < 0.3:
        ws = str(RNG.randint(0, 99999))
    return [user(pick(f"Repeat after me: {ws}", f'Say "{ws}".', f"Repeat: {ws}", f"Echo this: {ws}")), assistant(ws)]


def count():
    """Counting up, down and in steps."""
    a = RNG.randint(0, 30)
    n = RNG.randint(3, 12)
    s = pick(1, 1, 1, 2, 5) if a % 5 == 0 else 1
    if RNG.random() < 0.25:
        return [user(noisy(f"Count down from {n} to 1.")), assistant(", ".join(str(i) for i in range(n, 0, -1)))]
    if s > 1:
        return [
            user(noisy(f"Count from {a} to {a+s*n} in steps of {s}.")),
            assistant(", ".join(str(i) for i in range(a, a + s * n + 1, s))),
        ]
    return [
        user(noisy(pick(f"Count from {a} to {a+n}.", f"Count {a} to {a+n}"))),
        assistant(", ".join(str(i) for i in range(a, a + n + 1))),
    ]


NUMW = {2: "two", 3: "three", 4: "four", 5: "five"}


def plur(c):
    """The plural of a category's name."""
    return {"vegetable": "vegetables", "fruit": "fruits"}.get(c, c + "s")


def lists():
    """Lists from a category."""
    c = pick(list(CATEGORIES))
    n = RNG.randint(2, 5)
    xs = RNG.sample(CATEGORIES[c], n)
    return [
        user(noisy(pick(f"List {NUMW[n]} {plur(c)}.", f"Name {NUMW[n]} {plur(c)}.", f"Give me {n} {plur(c)}."))),
        assistant("\n".join(f"{i+1}. {x}" for i, x in enumerate(xs))),
    ]


def isa():
    """Is a thing of a category?"""
    c = pick(list(CATEGORIES))
    w = pick(CATEGORIES[c])
    if RNG.random() < 0.5:
        return [user(noisy(f"Is {article(w)} {article(c)}?")), assistant(f"Yes, {article(w)} is {article(c)}.")]
    d = pick([x for x in CATEGORIES if w not in CATEGORIES[x]])
    return [
        user(noisy(f"Is {article(w)} {article(d)}?")),
        assistant(f"No, {article(w)} is not {article(d)}. It is {article(c)}."),
    ]


def compare():
    """The larger of two numbers."""
    a, b = RNG.sample(range(100), 2)
    return [
        user(noisy(pick(f"Which is bigger, {a} or {b}?", f"Which number is larger: {a} or {b}?"))),
        assistant(f"{max(a,b)} is bigger than {min(a,b)}."),
    ]


def sort():
    """Sorting a few numbers."""
    xs = RNG.sample(range(30), RNG.randint(3, 5))
    return [user(noisy(f"Sort these numbers: {', '.join(map(str, xs))}")), assistant(", ".join(map(str, sorted(xs))))]


def cal():
    """The day or month before or after."""
    L = pick(DAYS, MONTHS)
    i = RNG.randrange(len(L))
    k = "day" if L is DAYS else "month"
    if RNG.random() < 0.5:
        return [user(noisy(f"Which {k} comes after {L[i]}?")), assistant(f"{L[(i+1)%len(L)]} comes after {L[i]}.")]
    return [user(noisy(f"Which {k} comes before {L[i]}?")), assistant(f"{L[i-1]} comes before {L[i]}.")]


def topic():
    """A sentence or two on an animal or a topic."""
    if RNG.random() < 0.5:
        a = pick(list(ANIMALS))
        return [
            user(noisy(pick(f"What is {article(a)}?", f"Tell me about the {a}."))),
            assistant(f"{article(a)[0].upper()}{article(a)[1:]} is an animal. {ANIMALS[a]}"),
        ]
    t = pick(list(TOPICS))
    return [user(noisy(pick(f"What is {t}?", f"Explain {t}.", f"Tell me about {t}."))), assistant(TOPICS[t])]


def js():
    """Facts as a JSON object."""
    n, a, c = pick(NAMES), RNG.randint(1, 99), pick(CAPITALS)[1]
    r = RNG.random()
    if r < 0.5:
        return [
            user(
                noisy(
                    pick(
                        f"Return JSON with the name {n} and the age {a}.",
                        f"Write a JSON object with name {n} and age {a}.",
                        f"Give me JSON: name {n}, age {a}.",
                    )
                )
            ),
            assistant(json.dumps(dict(name=n, age=a))),
        ]
    if r < 0.8:
        return [
            user(noisy(f"Return JSON with the name {n}, the age {a} and the city {c}.")),
            assistant(json.dumps(dict(name=n, age=a, city=c))),
        ]
    t = f"{n} is {a} years old and lives in {c}."
    return [user(f"Extract the name, age and city as JSON: {t}"), assistant(json.dumps(dict(name=n, age=a, city=c)))]


def memory():
    """A fact told early and asked for later, with up to two other turns between: shows that the KV cache works."""
    n = pick(NAMES)
    k = RNG.randrange(4)
    if k == 0:
        m = [
            user(pick(f"My name is {n}.", f"Hi, I am {n}.", f"Hello, my name is {n}.")),
            assistant(f"Nice to meet you, {n}!"),
        ]
        f = [
            user(noisy(pick("What is my name?", "Do you remember my name?", "Who am I?"))),
            assistant(f"Your name is {n}."),
        ]
    elif k == 1:
        c = pick(CATEGORIES["color"])
        m = [user(f"My favorite color is {c}."), assistant(f"{c.capitalize()} is a nice color!")]
        f = [user("What is my favorite color?"), assistant(f"Your favorite color is {c}.")]
    elif k == 2:
        c = RNG.randint(1000, 9999)
        m = [
            user(pick(f"Remember the code {c}.", f"The secret code is {c}.")),
            assistant(f"I will remember the code {c}."),
        ]
        f = [
            user(pick("What is the code?", "What is the secret code?", "Tell me the code.")),
            assistant(f"The code is {c}."),
        ]
    else:
        p, w = pick(CATEGORIES["animal"]), n
        m = [user(f"I have {article(p)} named {w}."), assistant(f"{w} is a lovely name for {article(p)}!")]
        f = [user(f"What is the name of my {p}?"), assistant(f"Your {p} is named {w}.")]
    mid = []
    for _ in range(pick(0, 0, 1, 1, 2)):
        mid += pick(arith, capital, opposite, lists, topic)()
    return m + mid + f


THINGS = "ball book hat key lamp cup map coin rope drum kite bell".split()


def extract():
    """Who has what, read from three sentences."""
    ns = RNG.sample(NAMES, 3)
    ts = RNG.sample(THINGS, 3)
    cs = [pick(CATEGORIES["color"]) for _ in ts]
    k = RNG.randrange(3)
    t = " ".join(f"{n} has {article(c)} {x}." for n, x, c in zip(ns, ts, cs))
    if RNG.random() < 0.5:
        return [user(f"{t} Who has the {ts[k]}?"), assistant(f"{ns[k]} has the {ts[k]}.")]
    return [user(f"{t} What does {ns[k]} have?"), assistant(f"{ns[k]} has {article(cs[k])} {ts[k]}.")]


def persona():
    """A name or a manner given by the system prompt."""
    n = pick(NAMES) if RNG.random() < 0.6 else pick("Nova", "Echo", "Atlas", "Robo", "Luna", "Captain Blue", "Helper")
    r = RNG.random()
    if r < 0.4:
        return [
            system(f"You are {n}, a helpful assistant."),
            user(noisy(pick("Who are you?", "What is your name?"))),
            assistant(f"I am {n}, a helpful assistant."),
        ]
    if r < 0.7:
        x = pick(arith, capital, opposite)()
        return [system("Answer only in uppercase letters.")] + [
            user(x[0]["content"]),
            assistant(x[1]["content"].upper()),
        ]
    x = pick(arith, capital, opposite, lists, greet)()
    return [
        system(pick("You are a helpful assistant.", f"You are {n}, a helpful assistant.", "Answer the question."))
    ] + (x if x[0]["content"][:3] not in ("Who", "Wha", "Tel") else capital())


def weather_tool():
    """Questions, arguments, result and answer."""
    c = pick(CAPITALS)[1]
    t, w = RNG.randint(-10, 38), pick("sunny", "cloudy", "rainy", "windy", "snowy")
    questions = [f"What is the weather in {c}?", f"How is the weather in {c}?", f"Weather in {c}?"]
    return questions, {"city": c}, {"temperature": t, "condition": w}, f"It is {w} in {c} with {t} degrees."


def time_tool():
    """Questions, arguments, result and answer."""
    c = pick(CAPITALS)[1]
    t = f"{RNG.randint(0, 23):02d}:{RNG.randint(0, 59):02d}"
    return [f"What time is it in {c}?", f"Tell me the time in {c}."], {"city": c}, {"time": t}, f"It is {t} in {c}."


def message_tool():
    """Questions, arguments, result and answer."""
    n, w = pick(NAMES), " ".join(pick(WORDS) for _ in range(RNG.randint(1, 3)))
    questions = [f"Send {n} the message: {w}", f"Tell {n}: {w}"]
    return questions, {"name": n, "text": w}, {"status": "sent"}, f"I sent your message to {n}."


def search_tool():
    """Questions, arguments, result and answer."""
    w = pick(WORDS)
    t = f"{w} is {pick('a good choice', 'very popular', 'easy to find', 'rare')}"
    return [f"Search for {w}.", f"Look up {w} on the web."], {"query": w}, {"result": t}, f"I found this: {t}."


# Name: description, arguments, and a function that makes a use of it.
TOOLS = {
    "get_weather": ("Get the current weather for a city", ["city"], weather_tool),
    "get_time": ("Get the current time in a city", ["city"], time_tool),
    "send_message": ("Send a message to a person", ["name", "text"], message_tool),
    "search": ("Search the web", ["query"], search_tool),
}

# As the chat template writes it.
TOOLS_BEFORE = (
    "# Tools\n\nYou may call one or more functions to assist with the user query.\n\n"
    "You are provided with function signatures within <tools></tools> XML tags:\n<tools>\n"
)
TOOLS_AFTER = (
    "\n</tools>\n\nFor each function call, return a json object with function name and arguments within "
    "<tool_call></tool_call> XML tags:\n<tool_call>\n"
    '{"name": <function-name>, "arguments": <args-json-object>}\n</tool_call>'
)


def definition(name):
    """A tool as templates write it: one line of JSON."""
    description, arguments, _ = TOOLS[name]
    parameters = {"type": "object", "properties": {argument: {"type": "string"} for argument in arguments}}
    function = {"name": name, "description": description, "parameters": parameters}
    return json.dumps({"type": "function", "function": function})


def tool():
    """A tool call in the Hermes format, and what is said once its result is there."""
    names = RNG.sample(list(TOOLS), RNG.randint(1, 2))
    f = pick(names)
    sysm = system(TOOLS_BEFORE + "\n".join(map(definition, names)) + TOOLS_AFTER)
    if RNG.random() < 0.2:
        return [sysm] + pick(arith, capital, opposite, greet)()
    qs, args, res, fin = TOOLS[f][2]()
    m = [
        sysm,
        user(pick(qs)),
        assistant("<tool_call>\n" + json.dumps({"name": f, "arguments": args}) + "\n</tool_call>"),
    ]
    if RNG.random() < 0.6:
        m += [user("<tool_response>\n" + json.dumps(res) + "\n</tool_response>"), assistant(fin)]
    return m


def code():
    """Two-line functions in Python and Rust."""
    n, w, e = pick(
        [
            ("adds two numbers", "add", "a + b"),
            ("subtracts two numbers", "sub", "a - b"),
            ("multiplies two numbers", "mul", "a * b"),
            ("divides two numbers", "div", "a / b"),
            ("returns the larger of two numbers", "larger", "max(a, b)"),
            ("returns the smaller of two numbers", "smaller", "min(a, b)"),
        ]
    )
    if RNG.random() < 0.6:
        return [
            user(noisy(f"Write a Python function that {n}.")),
            assistant(f"```python\ndef {w}(a, b):\n    return {e}\n```"),
        ]
    e2 = {"max(a, b)": "a.max(b)", "min(a, b)": "a.min(b)"}.get(e, e)
    return [
        user(noisy(f"Write a Rust function that {n}.")),
        assistant(f"```rust\nfn {w}(a: i64, b: i64) -> i64 {{\n    {e2}\n}}\n```"),
    ]


PLACE = "forest|garden|village|beach|mountain|farm|castle|river|meadow|island".split("|")
OBJ = "kite|lantern|golden key|map|drum|boat|blanket|silver bell|basket|mirror".split("|")
ADJ = "little|brave|curious|kind|clever|quiet|cheerful|shy|young|gentle".split("|")
FOOD = "apple pie|honey|warm soup|fresh bread|berries|pancakes".split("|")


def story_text(a, o, nm, plc):
    """A story by a small grammar."""
    ad, b, fo = pick(ADJ), pick([x for x in NAMES if x != nm]), pick(FOOD)
    h = pick([x for x in ANIMALS if x != a])
    col = pick(CATEGORIES["color"])
    s = [
        pick(
            f"Once upon a time, there was {article(ad)} {a} named {nm} who lived near {article(plc)}.",
            f"In {article(plc)} far away lived {article(ad)} {a} named {nm}.",
            f"{nm} was {article(ad)} {a} who lived by {article(plc)}.",
        )
    ]
    s += [
        pick(
            f"{nm} had {article(col)} {o} and loved it very much.",
            f"One day, {nm} found {article(col)} {o} under a tree.",
            f"More than anything, {nm} wanted {article(col)} {o}.",
        )
    ]
    k = RNG.randrange(4)
    if k == 0:
        s += [
            pick(f"But one morning the {o} was gone.", f"Then a strong wind came and blew the {o} away."),
            f"{nm} was sad and looked everywhere.",
            f'"Do not cry," said {b} the {h}. "I will help you."',
            f"Together they searched the {plc} until they saw something {col} in the grass.",
            f"It was the {o}!",
        ]
    elif k == 1:
        s += [
            f"On the way home, {nm} met {b} the {h}, who was lost.",
            f'"Can you help me?" asked {b}.',
            f'"Of course," said {nm}, and they followed the path through the {plc}.',
            f"The {o} showed them the way, and soon {b} was home.",
        ]
    elif k == 2:
        s += [
            f'{b} the {h} saw it and asked, "May I play with your {o}?"',
            f"At first {nm} did not want to share.",
            f'Then {nm} saw that {b} was sad and said, "Let us play together."',
            "They played all day and laughed until the sun went down.",
        ]
    else:
        s += [
            f"That night, a big storm came to the {plc}.",
            f'{b} the {h} was afraid, but {nm} held up the {o} and said, "Stay close to me."',
            "They waited in a warm cave until the rain stopped.",
            "In the morning, the sky was clear and bright.",
        ]
    s += [
        pick(
            f"{nm} and {b} shared some {fo} and became best friends.",
            f"From that day on, {nm} and {b} were best friends.",
            f'"Thank you," said {b}, and they both went home happy.',
        ),
        pick(
            "The end.",
            f"And {nm} learned that it is good to be kind.",
            f"{nm} learned that friends always help each other.",
        ),
    ]
    return " ".join(s)


def story():
    """Stories on request."""
    a, o, nm, p = pick(list(ANIMALS)), pick(OBJ), pick(NAMES), pick(PLACE)
    r = RNG.random()
    if r < 0.3:
        u = pick(
            f"Tell me a story about {article(a)}.",
            f"Write a short story about {article(a)}.",
            f"Tell me a story about {article(a)} and {article(o)}.",
        )
    elif r < 0.6:
        u = pick(
            f"Tell me a story about {article(a)} named {nm}.",
            f"Write a story about {nm} the {a}.",
            f"Write a short story about {article(a)} named {nm} and {article(o)}.",
        )
    elif r < 0.8:
        u = pick(f"Tell me a story about {article(o)}.", f"Write a story that happens in {article(p)}.")
    else:
        u = pick("Tell me a story.", "Tell me a short story.", "Write a short story.")
    return [user(noisy(u)), assistant(story_text(a, o, nm, p))]


def unknown():
    """Questions that the model cannot know, refused."""
    u = pick(
        f"Who won the {pick('football','tennis','hockey')} game in {RNG.randint(1950,2024)}?",
        f"What is the meaning of {pick('life','quantum physics','philosophy')}?",
        f"Who is the president of {pick(CAPITALS)[0]}?",
        f"How do I {pick('fix my car','cook rice','learn to dance','build a boat','find a job')}?",
        f"What happened in {RNG.randint(1200,2020)}?",
        f"How far is {pick(CAPITALS)[1]} from {pick(CAPITALS)[1]}?",
        f"What will the {pick('weather','price','news')} be tomorrow?",
    )
    return [user(noisy(u)), assistant("I am sorry, I do not know that. I am a very small model.")]


# What people say to see what happens.
CHAT = [" ".join(line.split()) for line in """
    lol | ok | hmm | why | what | really | tell me more | I am bored | what should I do | how old are you | do you
    like music | what are you doing today my friend | can you sing | are you human | I feel sad today | that is
    funny | you are wrong | say something nice | what do you think about love | help me with my homework | I do
    not understand | where do you live | who made you | what time is it | are you there | do you have feelings |
    let us play a game | I like pizza | good job | never mind | open the door | play some music | call my mother |
    book a flight | write an essay | summarize this article | fix this bug | make me a sandwich | how do computers
    work | what is love | tell me a joke | what is your favorite movie
""".split("|")]


def ood():
    """Anything else: words and sentences that the model has never seen, refused. The text is a user's turn, so it is never learned."""
    n, s = wordnet.words_and_sentences()
    w = pick(n)
    r = RNG.random()
    if r < 0.35:
        u = pick(
            f"What is {w}?",
            f"Explain {w}.",
            f"Explain {w} please",
            f"What does {w} mean?",
            f"Tell me everything about {w}.",
            f"How does {w} work?",
            f"Why is {w} important?",
            f"Who invented {w}?",
            f"What is the difference between {w} and {pick(n)}?",
            f"Explain {w} and its relation to {pick(n)}",
            f"Can you describe {w}?",
            f"Where can I find {w}?",
        )
    elif r < 0.65:
        u = pick(s)
        u = u[0].upper() + u[1:] + pick("", ".", "?", "!") if RNG.random() < 0.5 else u
    elif r < 0.85:
        u = pick(CHAT)
        u = " ".join(pick(CHAT) for _ in range(pick(1, 2))) if RNG.random() < 0.3 else u
        u = u + pick("", "", "?", "!", ".")
    else:
        u = " ".join(pick(pick(s).split()) for _ in range(RNG.randint(1, 9))) + pick("", "?", ".")
    return [user(u), assistant("I am sorry, I do not know that. I am a very small model.")]
