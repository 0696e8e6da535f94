"""The rules of the grammar corpus: review-like English whose sentiment and Penn tags are known by
construction.

A line is `NAME: alternative | alternative`, an indented line goes on. `word/TAG` is a terminal, a
capitalised name another rule; `NAME/TAG = words` is a rule of single words with one tag. An alternative
that begins with + or - is used in positive or negative reviews only; `*3` at its end weighs it three
times. PRODUCT, PRODUCTS and BRAND stay the same over a review. "a" before a vowel becomes "an"; sentences
begin with a capital.

Neutral sentences are the same in both classes, so whoever predicts the next byte gains by remembering the
sentiment across them. Many words have more than one tag: love, like, work, works, use, uses, charge,
return, cost, sound, sounds, back, that, her, better, worse, well, plays, in, one.
"""

from __future__ import annotations

PRODUCTS = (
    *(("camera", "cameras"), ("phone", "phones"), ("lamp", "lamps"), ("radio", "radios")),
    *(("blender", "blenders"), ("printer", "printers"), ("kettle", "kettles"), ("guitar", "guitars")),
    *(("tablet", "tablets"), ("speaker", "speakers"), ("watch", "watches"), ("heater", "heaters")),
)
BRANDS = ("Norvik", "Zentra", "Kalora", "Tamrel", "Orbex", "Velmont")

RULES = """
REVIEW: OPEN BODY BODY CLOSE *2 | OPEN BODY BODY BODY CLOSE *4 | OPEN BODY BODY BODY BODY CLOSE *3
  | OPEN BODY BODY BODY BODY BODY CLOSE *2 | BODY BODY BODY CLOSE | OPEN BODY BODY BODY BODY

OPEN: I/PRP BOUGHT THIS PRODUCT FORWHOM ./. *3
  | I/PRP BOUGHT THIS PRODUCT WHEN ./. *2
  | POSS PERSON gave/VBD OBJECT THIS PRODUCT WHEN ./. *2
  | I/PRP have/VBP USED THIS PRODUCT for/IN PERIOD ./. *2
  | BRAND makes/VBZ MANY PRODUCTS ,/, and/CC I/PRP own/VBP NUM of/IN them/PRP ./.
  | I/PRP FEELV THIS PRODUCT MARK *2
  | this/DT is/VBZ the/DT SUPERLATIVE PRODUCT that/WDT I/PRP have/VBP ever/RB owned/VBN MARK *2
  | what/WDT a/DT QUALITY PRODUCT !/.

BODY: the/DT PART is/VBZ DEGREE QUALITY ./. *4
  | the/DT PARTS are/VBP DEGREE QUALITY ./. *3
  | the/DT PART VERBZ MANNER ./. *3
  | the/DT PARTS VERBP MANNER ./. *2
  | I/PRP FEELV the/DT PART of/IN THIS PRODUCT MARK *2
  | I/PRP THINK that/IN the/DT PART is/VBZ DEGREE QUALITY ./. *2
  | the/DT PART is/VBZ OPPOSITE ,/, but/CC the/DT PART is/VBZ DEGREE QUALITY ./. *2
  | it/PRP is/VBZ not/RB OPPOSITE ,/, and/CC it/PRP VERBZ MANNER ./.
  | it/PRP is/VBZ COMPARED than/IN POSS old/JJ one/NN ./. *2
  | it/PRP LOOKS like/IN a/DT QUALITY toy/NN ./.
  | it/PRP makes/VBZ OBJECT MOOD when/WRB I/PRP use/VBP it/PRP ./. *2
  | + it/PRP does/VBZ n't/RB FAILV ,/, and/CC it/PRP never/RB FAILED ./. *2
  | - it/PRP does/VBZ n't/RB WORKV ,/, and/CC it/PRP FAILED AFTERTIME ./. *2
  | + it/PRP 's/VBZ a/DT real/JJ joy/NN to/TO use/VB ./.
  | - it/PRP 's/VBZ a/DT real/JJ pain/NN to/TO use/VB ./.
  | + the/DT seller/NN was/VBD helpful/JJ and/CC answered/VBD quickly/RB ./.
  | - the/DT seller/NN was/VBD rude/JJ and/CC never/RB answered/VBD ./.
  | - I/PRP had/VBD to/TO send/VB it/PRP back/RB AFTERTIME ./. *2
  | + I/PRP wanted/VBD to/TO show/VB it/PRP to/TO POSS PERSON ./. *2
  | NEUTRAL *14

NEUTRAL: it/PRP came/VBD with/IN NUM PARTS and/CC a/DT PART ./. *2
  | POSS PERSON uses/VBZ it/PRP PLACE ./. *2
  | I/PRP use/VBP it/PRP PLACE HOWOFTEN ./. *2
  | the/DT COLOR one/NN (/( with/IN the/DT PART )/) cost/VBD NUM dollars/NNS ./. *2
  | you/PRP can/MD charge/VB it/PRP PLACE ./.
  | it/PRP needs/VBZ NUM hours/NNS for/IN one/CD charge/NN ./.
  | there/EX is/VBZ a/DT COLOR PART on/IN the/DT back/NN ./.
  | the/DT sound/NN of/IN the/DT PART sounds/VBZ like/IN a/DT PRODUCT ./.
  | I/PRP was/VBD looking/VBG for/IN a/DT COLOR PRODUCT ./.
  | the/DT box/NN says/VBZ that/IN BRAND builds/VBZ its/PRP$ PRODUCTS in/IN CITY ./.
  | POSS PERSON plays/VBZ with/IN that/DT PRODUCT HOWOFTEN ./.
  | it/PRP was/VBD delivered/VBN in/IN MONTH ,/, with/IN NUM PARTS ./.
  | the/DT works/NNS inside/IN it/PRP were/VBD made/VBN in/IN CITY ./.
  | I/PRP read/VBD two/CD plays/NNS about/IN love/NN and/CC work/NN while/IN it/PRP was/VBD charging/VBG ./.
  | other/JJ PRODUCTS have/VBP more/JJR PARTS and/CC cost/VBP less/JJR ./.

CLOSE: + I/PRP would/MD recommend/VB it/PRP to/TO EVERYONE MARK *3
  | - I/PRP would/MD not/RB recommend/VB it/PRP to/TO EVERYONE MARK *3
  | + highly/RB recommended/VBN MARK *2
  | - very/RB disappointed/VBN MARK *2
  | + buy/VB it/PRP ,/, you/PRP will/MD love/VB it/PRP MARK *2
  | - do/VB n't/RB buy/VB it/PRP ,/, you/PRP will/MD return/VB it/PRP MARK *2
  | I/PRP am/VBP DEGREE MOOD with/IN THIS purchase/NN ./. *2
  | + five/CD stars/NNS for/IN BRAND MARK *2
  | - one/CD star/NN for/IN BRAND MARK *2
  | + thank/VBP you/PRP ,/, BRAND !/.
  | - save/VB your/PRP$ money/NN ./.
  | + it/PRP is/VBZ well/RB worth/JJ the/DT cost/NN ./.
  | - it/PRP is/VBZ n't/RB worth/JJ the/DT cost/NN ./.
  | - the/DT return/NN was/VBD slow/JJ ,/, and/CC I/PRP lost/VBD NUM dollars/NNS ./.
  | I/PRP paid/VBD NUM dollars/NNS for/IN it/PRP in/IN CITY ./. *2
  | I/PRP may/MD buy/VB another/DT one/NN in/IN MONTH ./.

BOUGHT/VBD = bought ordered got
USED/VBN = used had owned
THIS: this/DT *4 | the/DT BRAND | that/DT
MANY/JJ = many several
OBJECT/PRP = me us her him
POSS/PRP$ = my her our his
PERSON/NN = wife husband brother sister mother father son daughter friend neighbor
FORWHOM: for/IN POSS PERSON | as/IN a/DT gift/NN for/IN POSS PERSON | for/IN our/PRP$ ROOM
WHEN: PERIOD ago/RB *2 | in/IN MONTH | last/JJ UNIT
PERIOD: NUM UNITS
NUM/CD = two three four six ten 20
UNIT/NN = week month year
UNITS/NNS = days weeks months years
MONTH/NNP = March April June October
CITY/NNP = Boston Denver Dallas Paris
ROOM/NN = kitchen office garage bedroom
PLACE: in/IN the/DT ROOM *2 | at/IN work/NN | at/IN home/NN | on/IN the/DT road/NN
HOWOFTEN: every/DT UNIT *2 | every/DT day/NN *2 | on/IN weekends/NNS
AFTERTIME: after/IN PERIOD
COLOR/JJ = black white red blue silver small
PART/NN = battery screen case cable handle button cover motor sound design switch manual
PARTS/NNS = buttons cables batteries controls lights covers speakers switches
DEGREE: very/RB *3 | really/RB *2 | so/RB | quite/RB | just/RB
GOOD/JJ = great excellent good perfect wonderful beautiful amazing solid nice fantastic
BAD/JJ = terrible bad awful poor horrible cheap useless weak ugly flimsy
QUALITY: + GOOD | - BAD
OPPOSITE: + BAD | - GOOD
SUPERLATIVE: + best/JJS *3 | + nicest/JJS | - worst/JJS *3 | - cheapest/JJS
COMPARED: + better/JJR *2 | + stronger/JJR | + faster/JJR | + much/RB better/JJR
  | - worse/JJR *2 | - weaker/JJR | - slower/JJR | - much/RB worse/JJR
FEELV: + love/VBP *3 | + like/VBP *2 | + enjoy/VBP | - hate/VBP *3 | - dislike/VBP *2 | - regret/VBP
MOOD: + happy/JJ *2 | + pleased/JJ | + glad/JJ | - angry/JJ *2 | - unhappy/JJ | - sad/JJ
THINK/VBP = think believe say
VERBZ/VBZ = works feels sounds looks
VERBP/VBP = work feel sound look
LOOKS/VBZ = looks sounds feels
MANNER: + great/RB *2 | + well/RB *2 | + perfectly/RB | + better/RBR than/IN I/PRP expected/VBD
  | - badly/RB *2 | - poorly/RB *2 | - terribly/RB | - worse/RBR than/IN I/PRP expected/VBD
FAILV/VB = break fail stop
FAILED/VBD = broke failed stopped
WORKV/VB = work last charge
EVERYONE: anyone/NN *2 | POSS PERSON | a/DT friend/NN
MARK: ./. *2 | !/.
"""
