"""The rules of the grammar corpus: review-like English whose sentiment and Penn tags are known by
construction.

A line is `NAME: alternative | alternative`, an indented line goes on. `word/TAG` is a terminal, a
capitalised name another rule; `NAME/TAG = words` is a rule of single words with one tag. An alternative
that begins with + or - is used in positive or negative reviews only; `*3` at its end weighs it three
times. PRODUCT, PRODUCTS and BRAND stay the same over a review. "a" before a vowel becomes "an"; sentences
begin with a capital.

Neutral sentences are the same in both classes, so whoever predicts the next byte gains by remembering the
sentiment across them. Sentences are short and words few on purpose: that gain is at most a bit a sentence. In
one run each of a 128-cell model over 6 MB, the best cell told 68 % of reviews apart with an earlier grammar of
three times the words and longer sentences, and 97 % with this one (cell and threshold picked on those reviews;
words and length changed together, so which of the two matters is not known).
Words with more than one tag: works, sound, sounds,
use, charge, better, worse, that, one.
"""

from __future__ import annotations

PRODUCTS = (("camera", "cameras"), ("phone", "phones"), ("lamp", "lamps"), ("radio", "radios"))
BRANDS = ("Norvik", "Zentra", "Kalora")

RULES = """
REVIEW: OPEN BODY BODY BODY BODY BODY *2 | OPEN BODY BODY BODY BODY BODY BODY *3
  | OPEN BODY BODY BODY BODY BODY BODY BODY *3 | OPEN BODY BODY BODY BODY BODY BODY BODY BODY *2

OPEN: I/PRP FEELV this/DT PRODUCT MARK *3
  | what/WDT a/DT QUALITY PRODUCT !/. *2
  | the/DT SUPERLATIVE PRODUCT that/WDT I/PRP have/VBP owned/VBN ./.

BODY: the/DT PART is/VBZ QUALITY ./. *5
  | the/DT PARTS are/VBP QUALITY ./. *4
  | it/PRP VERBZ MANNER ./. *5
  | I/PRP FEELV it/PRP MARK *4
  | I/PRP FEELV the/DT PARTS MARK *2
  | POSS PERSON FEELZ it/PRP ./. *3
  | it/PRP is/VBZ QUALITY ./. *3
  | it/PRP is/VBZ COMPARED than/IN my/PRP$ old/JJ one/NN ./.
  | I/PRP think/VBP that/IN it/PRP is/VBZ QUALITY ./.
  | I/PRP am/VBP MOOD ./. *2
  | + it/PRP never/RB FAILED ./. | - it/PRP FAILED in/IN MONTH ./.
  | a/DT JOY to/TO use/VB ./. *2
  | there/EX is/VBZ a/DT QUALITY PART ./.
  | + I/PRP would/MD recommend/VB it/PRP ./. *2 | - I/PRP would/MD return/VB it/PRP ./. *2
  | + five/CD stars/NNS for/IN BRAND ./. | - one/CD star/NN for/IN BRAND ./.
  | NEUTRAL *6

NEUTRAL: POSS PERSON uses/VBZ it/PRP ./. *2
  | I/PRP use/VBP it/PRP at/IN PLACE ./. *2
  | I/PRP can/MD charge/VB it/PRP ./.
  | it/PRP needs/VBZ one/CD charge/NN ./.
  | the/DT COLOR one/NN (/( with/IN PARTS )/) cost/VBD more/JJR ./.
  | its/PRP$ works/NNS were/VBD made/VBN in/IN CITY ./.
  | I/PRP was/VBD looking/VBG for/IN two/CD PRODUCTS ./.
  | BRAND sells/VBZ PRODUCTS ,/, and/CC PARTS ./.

JOY: + joy/NN | - pain/NN
FAILED/VBD = broke failed
POSS/PRP$ = my her our
PERSON/NN = wife son friend
MONTH/NNP = March June
CITY/NNP = Boston Paris
PLACE/NN = work home
COLOR/JJ = black red
PART/NN = battery screen case sound
PARTS/NNS = buttons cables lights
GOOD/JJ = great good nice
BAD/JJ = awful bad poor
QUALITY: + GOOD | - BAD
SUPERLATIVE: + best/JJS | - worst/JJS
COMPARED: + better/JJR | - worse/JJR
FEELV: + love/VBP *2 | + like/VBP | - hate/VBP *2 | - regret/VBP
FEELZ: + loves/VBZ | + likes/VBZ | - hates/VBZ | - regrets/VBZ
MOOD: + happy/JJ | - angry/JJ
VERBZ/VBZ = works sounds
MANNER: + well/RB *2 | + better/RBR | - badly/RB *2 | - worse/RBR
MARK: ./. *3 | !/.
"""
