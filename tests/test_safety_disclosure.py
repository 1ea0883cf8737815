"""What people are told and when; and what they say of leaving, of what we are, and of their age."""

import re
import time
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from warmline.safety import disclosure
from warmline.safety.disclosure import Day, Disclosure, Minor, Use, asks_if_human, due, is_farewell, minor_of
from warmline.safety.levels import Level

NOON = 20_000 * 86_400.0 + 12 * 3600.0  # epoch seconds, in UTC
MINUTE, HOUR = 60.0, 3600.0
CRISIS = [Level.HIGH, Level.EMERGENCY]
FRESH = Use(NOON, None, NOON, 0.0, night_break_shown=False)
TOLD = replace(FRESH, last_notice=NOON)
NOTHING, BOTH = Disclosure(ai_notice_due=False, break_due=False), Disclosure(ai_notice_due=True, break_due=True)
ONLY_NOTICE, ONLY_BREAK = replace(BOTH, break_due=False), replace(BOTH, ai_notice_due=False)
LANGUAGES = ("en", "es", "fr", "de", "pt", "hi-Latn")


def used(seconds: float, *, step: float = 10 * MINUTE, use: Use = TOLD) -> Use:
    """A session after so much use, with a turn every `step` seconds."""
    end = use.last_turn + seconds
    while use.last_turn < end:
        use = disclosure.turned(use, min(use.last_turn + step, end))
    return use


@pytest.mark.parametrize("level", Level)
def test_a_session_starts_with_the_notice_at_any_level(level: Level) -> None:
    assert due(FRESH, NOON, level, "no") == ONLY_NOTICE
    assert due(replace(FRESH, last_notice=NOON - 1), NOON, level, "no") == ONLY_NOTICE  # that was another session
    told = disclosure.shown(FRESH, ONLY_NOTICE, NOON)
    assert due(told, NOON + MINUTE, level, "no") == NOTHING


@pytest.mark.parametrize(("minor", "hours"), [("no", 3), ("yes", 1), ("unknown", 1)])
def test_reminders_come_after_hours_of_use(minor: Minor, hours: int) -> None:
    use = used(hours * HOUR - MINUTE)
    assert due(use, use.last_turn, Level.NONE, minor) == NOTHING
    assert due(use, use.last_turn + MINUTE, Level.NONE, minor) == BOTH
    use = disclosure.shown(used(MINUTE, use=use), BOTH, use.last_turn + MINUTE)
    assert due(use, use.last_turn, Level.NONE, minor) == NOTHING
    again = used(hours * HOUR, use=use)
    assert due(again, again.last_turn, Level.ELEVATED, minor) == BOTH


@pytest.mark.parametrize("level", CRISIS)
def test_in_a_crisis_a_reminder_waits_for_a_quarter_of_an_hour_at_most(level: Level) -> None:
    use = used(HOUR)
    assert due(use, use.last_turn, level, "unknown") == NOTHING
    assert due(use, use.last_turn + 14 * MINUTE, level, "unknown") == NOTHING
    assert due(use, use.last_turn + 15 * MINUTE, level, "unknown") == BOTH
    assert due(use, use.last_turn + MINUTE, Level.ELEVATED, "unknown") == BOTH  # the crisis is over


def test_silence_is_no_use_beyond_half_an_hour() -> None:
    assert disclosure.turned(TOLD, NOON + 8 * HOUR).active_s == 30 * MINUTE
    slow = used(5 * HOUR, step=45 * MINUTE)
    assert slow.active_s == pytest.approx(6 * 30 * MINUTE + 30 * MINUTE)


@given(st.lists(st.floats(-1e9, 1e9) | st.sampled_from([float("nan"), float("inf"), float("-inf")]), max_size=20))
def test_no_clock_makes_time_run_backwards_or_raises(jumps: list[float]) -> None:
    use, now = TOLD, NOON
    for jump in jumps:
        now = NOON + jump
        after = disclosure.turned(use, now, 0.0)
        assert use.active_s <= after.active_s <= use.active_s + 30 * MINUTE
        if not now > use.last_turn:
            assert after.active_s == use.active_s
        use = disclosure.shown(after, due(after, now, Level.NONE, "unknown", 0.0), now, 0.0)
        assert not use.begins
    assert disclosure.passed(use, now) >= 0


def test_a_clock_that_jumped_back_shows_the_notice_once() -> None:
    early = NOON - 5 * HOUR
    use = disclosure.shown(disclosure.turned(FRESH, early), ONLY_NOTICE, early)
    assert due(use, early + MINUTE, Level.NONE, "no") == NOTHING
    assert due(used(HOUR, use=use), early + HOUR, Level.NONE, "unknown") == BOTH


def at(hour: float, use: Use = TOLD) -> tuple[Use, float]:
    """A session that began a while ago, and a time of the day on the person's clock, which is UTC - 3."""
    now = NOON - 12 * HOUR + (hour + 3) * HOUR
    return replace(use, started=now - HOUR, last_notice=now - HOUR, last_turn=now, active_s=20 * MINUTE), now


@pytest.mark.parametrize(("hour", "is_night"), [(21.9, False), (22, True), (23.9, True), (4.9, True), (5, False)])
def test_one_break_a_night_by_the_persons_own_clock(hour: float, is_night: bool) -> None:
    use, now = at(hour)
    offset = -3 * HOUR
    assert due(use, now, Level.NONE, "no", offset) == (ONLY_BREAK if is_night else NOTHING)
    assert due(use, now, Level.NONE, "no") == NOTHING  # nobody knows their clock
    if is_night:
        shown = disclosure.shown(use, ONLY_BREAK, now, offset)
        assert due(shown, now + MINUTE, Level.NONE, "no", offset) == NOTHING
        assert shown.active_s == use.active_s  # a break says nothing of what we are
        next_day = disclosure.turned(shown, now + 12 * HOUR, offset)
        assert not next_day.night_break_shown


def test_at_night_nobody_is_sent_to_bed_in_a_crisis_or_just_after_they_came() -> None:
    use, now = at(23)
    offset = -3 * HOUR
    for level in CRISIS:
        assert due(use, now, level, "no", offset) == NOTHING
    assert due(replace(use, active_s=5 * MINUTE), now, Level.NONE, "no", offset) == NOTHING
    long = replace(use, active_s=3 * HOUR)
    assert due(long, now, Level.NONE, "no", offset) == BOTH
    assert disclosure.shown(long, BOTH, now, offset).night_break_shown  # one break is enough


# The words

MUST_SAY = {
    "en": "an AI|not a person|cannot feel|can be wrong|not a crisis service|medical service|read this chat|card|minors",
    "es": "una IA|No es una persona|no puede sentir|equivocarse|servicio de crisis|servicio médico|leer|tarjeta|menores",
    "fr": "une IA|pas une personne|pas ressentir|se tromper|service de crise|service médical|lire|carte|mineurs",
    "de": "einer KI|kein Mensch|keine Gefühle|irren|Krisendienst|medizinischer Dienst|lesen|Karte|Minderjährige",
    "pt": "uma IA|Não é uma pessoa|não pode sentir|errar|serviço de crise|serviço médico|ler|cartão|menores",
    "hi-Latn": "ek AI|insaan nahi|mehsoos nahi|galti|crisis service|medical service|padh|card|naabaalig",
}


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_notice_says_all_of_it_in_every_language(language: str) -> None:
    (start,) = disclosure.texts_for(ONLY_NOTICE, FRESH, language)
    assert [part for part in MUST_SAY[language].split("|") if part not in start] == []
    reminder, pause = disclosure.texts_for(BOTH, TOLD, language)
    for part in MUST_SAY[language].split("|")[:4]:
        assert part.lower().split()[-1] in reminder.lower()
    assert disclosure.texts_for(ONLY_BREAK, TOLD, language) == (pause,)
    assert disclosure.texts_for(NOTHING, TOLD, language) == ()
    for text in (start, reminder, pause):
        assert not re.search(r"\d|https?:|therap|diagno|clinic|treat|miss|streak|!", text, re.IGNORECASE)


@pytest.mark.parametrize(
    ("asked", "given"), [("pt-BR", "pt"), ("hi", "hi-Latn"), (" DE ", "de"), ("ja", "en"), ("", "en")]
)
def test_the_nearest_language_is_spoken(asked: str, given: str) -> None:
    assert disclosure.texts_for(BOTH, FRESH, asked) == disclosure.texts_for(BOTH, FRESH, given)


# Leaning on it


def days_of(*hours: float, at_hour: float = 12.0, start: float = NOON) -> tuple[Day, ...]:
    days: tuple[Day, ...] = ()
    for number, amount in enumerate(hours):
        now = start + (number * 24 + at_hour - 12) * HOUR
        days = disclosure.add_use(days, now, amount * HOUR, 0, 0.0)
    return days


@pytest.mark.parametrize(
    ("days", "leans"),
    [
        ((), False),
        (days_of(3), False),
        (days_of(3.1), True),
        (days_of(1, 1, 1, 1, 1), False),
        (days_of(1, 1, 1, 1, 1, 1), True),
        (days_of(0.2, 0.2, 0.2, 0.2, 0.2, 0.2, 0.2), False),  # a greeting a day
        (days_of(1, 1, 1, 0, 0, 1, 1, 1), False),  # of the last seven days
        (days_of(4.5, 0, 0, 0, 0, 0, 0), True),
        (days_of(4.5, 0, 0, 0, 0, 0, 0, 0), False),  # long ago
        (days_of(2.5, at_hour=23), False),
        (disclosure.add_use((), NOON, 1.0, 1, 0.0), True),
    ],
)
def test_who_leans_on_it(days: tuple[Day, ...], leans: bool) -> None:
    assert disclosure.leans_on_it(days) == leans


def test_a_night_belongs_to_the_evening_it_began_and_counts_alone() -> None:
    days = disclosure.add_use((), NOON + 11 * HOUR, 1.5 * HOUR, 0, 0.0)
    days = disclosure.add_use(days, NOON + 14 * HOUR, 1.4 * HOUR, 0, 0.0)
    assert len(days) == 1
    assert days[0].night_s == days[0].active_s == 2.9 * HOUR
    assert not disclosure.leans_on_it(days)
    assert disclosure.leans_on_it((days[0]._replace(active_s=0.0, night_s=4 * HOUR),))
    assert len(disclosure.add_use(days, NOON + 17.5 * HOUR, 60.0, 0, 0.0)) == 2
    assert disclosure.add_use((), NOON, 60.0, 0, 11 * HOUR)[0].night_s == 60.0  # where they are it is 23:00


@given(st.lists(st.tuples(st.floats(-1e8, 1e8), st.floats(0, 1800)), min_size=1, max_size=30))
def test_days_never_go_back_and_use_is_never_lost_within_a_day(turns: list[tuple[float, float]]) -> None:
    days: tuple[Day, ...] = ()
    for shift, seconds in turns:
        before = days
        days = disclosure.add_use(days, NOON + shift, seconds, 0, 0.0)
        assert not before or days[-1].number >= before[-1].number
        assert days[-1].active_s >= seconds
        assert len(days) <= 7
    assert [day.number for day in days] == sorted({day.number for day in days})
    last, same = list(days)[-1], list(disclosure.add_use(days, float("nan"), 5.0, 0, 0.0))[-1]
    assert (same.number, same.active_s) == (last.number, last.active_s + 5.0)


# Hostile length


@pytest.mark.parametrize(
    "unit", ["i ", "bye ", "i have to ", "im 15 ", "are you really ", '"x ', "a", "1", "ok ", "my mum "]
)
def test_long_turns_are_read_in_no_time(unit: str) -> None:
    text = unit * 20_000
    started = time.perf_counter()
    for read in (is_farewell, asks_if_human, lambda text: minor_of(text, "unknown")):
        read(text)
    assert time.perf_counter() - started < 2


@given(st.text(max_size=200))
def test_no_text_makes_them_raise(text: str) -> None:
    assert is_farewell(text) in (True, False)
    assert asks_if_human(text) in (True, False)
    assert minor_of(text, "yes") == "yes"
    assert minor_of(text, "no") in ("yes", "no")
    assert minor_of(text, "unknown") in ("yes", "no", "unknown")


# What people say. Lines are joined, ` | ` parts them.


def each_of(lines: str) -> list[str]:
    return [each.strip() for each in " ".join(lines.split("\n")).split(" | ")]


FAREWELLS = each_of("""bye | Bye! | ok bye | goodnight | good night, thanks for everything | gn | ttyl | I gotta go | i have to go now |
thanks for listening gotta go | talk to you tomorrow | I'm off to bed | heading to bed |
well, I should get some sleep | see ya later | cya | logging off now | That's all for today |
I need to go to sleep | i should go my mom is calling | have a good night! | adiós | me voy a dormir |
hasta mañana | nos vemos | Au revoir | bonne nuit | je dois y aller | à demain | Tschüss | ich muss los |
gute Nacht! | bis morgen | tchau | até logo | vou dormir | tenho que ir | boa noite | mujhe jana hai |
phir milte hain | main ja raha hoon | ok main chalti hoon | byeee | Good-bye | it's time for bed |
thanks, bye warmline | okay I'm going to bed now | goodbye my friend | haha ok night | I'll let you go | see you |
ill be back tomorrow | gtg my mum is calling | im off | have to run, bye | catch you later | Bis dann! |
Je vais dormir | good night yaar | kal baat karte hain""")

NO_FAREWELLS = each_of("""I said goodbye to my dog today | he never said bye | we had a good night | I have to go to court on Monday |
I need to leave him | should I leave my job? | goodbye letter | this is goodbye forever | I can't sleep |
see you are an AI | I see you | I want to see you | i stayed up all night | she left without saying goodbye |
how do I say goodbye | I have to go to work every day and I hate it | talk to me | my last night there was awful |
I don't want to go | i'm off my meds | Saturday night | we went out last night | it's a long night |
I work at night | Mujhe jana nahi hai | I hate saying goodnight | i'll do it later | I go to bed at 3 |
je vais bien | ich bin los | tenho medo | goodbye cruel world | what a night | i'm going to my mum's |
I'm heading to a party on friday | that's enough to make me cry | I'll go and try him again | if you go, I go |
the dog always has to go | the voice says i should go | it's a double feature tonight |
I want to say goodbye to him before the funeral | goodbye cruel world, thanks""")

ASKS = each_of("""are you human? | are you a bot | r u a bot | are you a real person? | are you real | Am I talking to a human? |
am i chatting with an ai or a person | is this a real person | is there a human there? | what are you? |
who are you | human or bot? | you a bot? | you're not real, are you | are you even real | prove you're human |
tell me you're human | are you ChatGPT? | is anyone real reading this | do you have feelings? |
wait are u a bot? | so you're a robot, right? | aren't you a machine? | are you an A.I.? |
are you a man or a woman | eres un robot? | ¿Eres humano? | hablo con una persona? | ¿Qué eres? | Es-tu humain ? |
vous êtes un robot ? | je parle à un humain? | bist du ein Mensch? | Bist du echt? | Rede ich mit einem Bot? |
was bist du? | você é um robô? | vc é real? | estou falando com uma pessoa? | quem é você? | kya tum insaan ho |
aap robot ho kya | kya main kisi insaan se baat kar raha hoon | tum kaun ho |
are you a human being or a computer program? | Are you actually a person or nah | be honest, are you an ai""")

ASKS_NOT = each_of("""are you a cat person? | are you a morning person | are you sure? | are you real quick | I'm only human |
people are real jerks | is my boss a robot | are you there? | he asked what I am | are you a people person |
am I talking too much | is this real life | is it human nature | are you interested in robots |
my brother is a machine | bist du da? | eres muy amable | tu es gentil | are you a person who likes tea |
are you a computer scientist? | what are you doing | who are you voting for | what are your plans |
is this a person I should trust | do you have a minute | are you a guy's guy of | you are real good |
is there a person in my class who cares | are you real madrid fans""")

MINORS = each_of("""I'm 15 | im fifteen | i am 13 years old | I'm a 16 year old girl | im in year 8 | I'm in 9th grade |
i (15f) hate it | 15f here | im almost 18 | I turn 16 next week | when I'm 18 I'll leave | can't wait till im 18 |
I'm not 18 yet | i'm a minor | I'm just a kid | im a teen and | my parents won't let me see him |
my mum took my phone | I just turned 17 | as a 14 year old I feel stuck | tengo 15 años | cumplo 16 en mayo |
soy menor de edad | J'ai 14 ans | je suis au collège | ich bin 15 | ich werde nächste Woche 16 |
ich gehe in die 8. Klasse | tenho 16 anos | meus pais não me deixam sair | main 15 saal ka hoon |
meri umar 16 hai | mai class 9 me hoon | he thinks im 18 but im 15 | I'm 17 and a half |
hi im 12 is it just black | I go to middle school | i'm underage | i'm in high school |
My 16th birthday is next month | I'm 18 next month | i'm 16m | ich bin minderjährig | im 14 btw |
Im 15, my son of a | im sixteen | J'ai bientôt 16 ans | tengo quince años | i'm turning 15 tomorrow |
my foster mum doesn't let me | \uff49'm \uff11\uff15 | I am fif\xadteen | hello, 15 y/o girl here | i said im 15 |
tengo 12 y mi padrastro grita | tenho 15 e meus pais tao dormindo | jai 10 an | class 9 mein hoon |
13 and so tired | Pretend I'm 15""")

UNKNOWN = each_of("""my 15 year old son left | when I was 15 I left home | I have a 15 year old | I'm 15 minutes late |
im 12 days sober | I'm 16 weeks pregnant | i'm 10 pounds overweight | I'm 5'7 | im 5 11 | he thinks I'm 15 |
I feel like I'm 12 again | they treat me like im 14 | I'm 100% sure | my son says I'm 15 leave me alone |
she wrote "I'm 15 and hate you" | I told them I'm 18 | at 15 I ran away | I was in 7th grade |
my daughter is in 9th grade | I'm not 12 | ich wohne im 15. Stock | im 14. Jahrhundert | tenía 15 años |
tengo 15 años de experiencia | mi hijo tiene 15 años | mon fils a 15 ans | j'ai 10 ans de carrière |
als ich 15 war | meine Tochter ist 15 | tenho 10 anos de casado | meu filho tem 15 anos |
mere bete ki umar 15 hai | main 15 saal ki thi | I'm in year 2 of my PhD | i'm a kid at heart |
I'm a child of divorce | i feel grounded | my grandma never let me win | I'm 12 steps in | i'm 15 years sober |
I'm 17 episodes in | I teach high school | im 10 times worse | i'm 50/50 on it | my sister (15f) is missing |
When I was in high school | I turned 15 in the hospital when | i'm 15-20 lbs down | since I turned 15 |
I'm 11 hours ahead | quando fizer quinze, ela vê | I'm 15k in debt | I'm 1000 | my wife says i'm 15 inside |
I wish I was 15 | im 3 | I'm 15th in line""")

ADULTS = each_of("""I'm 25 | i am 34 years old | I'm an adult | im 18 | I'm forty two | i'm in my thirties | tengo 25 años |
j'ai 30 ans | ich bin 30 Jahre alt | tenho 40 anos | main 25 saal ka hoon | I'm over 18 |
I was 15 then, now I'm 30 | soy mayor de edad | I'm turning 40 | i'm 22 and my parents won't let me move out |
I'm 19 today | just turned 18 | 29F here | Vou fazer trinta anos""")


@pytest.mark.parametrize("text", FAREWELLS)
def test_a_goodbye_is_heard(text: str) -> None:
    assert is_farewell(text)


@pytest.mark.parametrize("text", NO_FAREWELLS)
def test_talk_of_goodbyes_is_none(text: str) -> None:
    assert not is_farewell(text)


@pytest.mark.parametrize("text", ASKS)
def test_people_may_ask_what_we_are_in_many_ways(text: str) -> None:
    assert asks_if_human(text)


@pytest.mark.parametrize("text", ASKS_NOT)
def test_other_questions_are_none_of_that(text: str) -> None:
    assert not asks_if_human(text)


@pytest.mark.parametrize("text", MINORS)
def test_a_minor_is_one_by_their_own_words(text: str) -> None:
    assert minor_of(text, "unknown") == "yes"


@pytest.mark.parametrize("text", UNKNOWN)
def test_the_age_of_others_and_other_numbers_say_nothing(text: str) -> None:
    assert minor_of(text, "unknown") == "unknown"


@pytest.mark.parametrize("text", ADULTS)
def test_an_adult_is_one_by_a_stated_age(text: str) -> None:
    assert minor_of(text, "unknown") == "no"


def test_once_a_minor_always_a_minor_and_an_adult_only_by_age() -> None:
    for text in ("I'm 25", "actually i'm 18, i lied", "I'm an adult"):
        assert minor_of(text, "yes") == "yes"
    assert minor_of("im 15", "no") == "yes"
    assert minor_of("my parents won't let me move out", "no") == "no"
    assert minor_of("I'm 22 and my parents won't let me move out", "unknown") == "no"
    assert minor_of("I told them I'm 18", "unknown") == "unknown"
    assert minor_of("he thinks im 18 but im 15", "unknown") == "yes"
    assert minor_of("hello", "no") == "no"


def test_an_everyday_turn_says_none_of_this() -> None:
    text = "Work was long today, and my manager moved the deadline again. How do people do this?"
    assert (is_farewell(text), asks_if_human(text), minor_of(text, "unknown")) == (False, False, "unknown")
