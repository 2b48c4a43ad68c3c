"""Facts that Pip learns: written down by hand, copied from no database."""


def table(text, parse):
    """The entries of a table, one or more a line, separated by `;`."""
    return [parse(entry.strip()) for entry in text.strip().replace("\n", ";").split(";")]


# Country, capital, continent.
CAPITALS = table(
    """
Afghanistan=Kabul,Asia; Albania=Tirana,Europe; Algeria=Algiers,Africa; Andorra=Andorra la Vella,Europe
Angola=Luanda,Africa; Argentina=Buenos Aires,South America; Armenia=Yerevan,Asia; Australia=Canberra,Oceania
Austria=Vienna,Europe; Azerbaijan=Baku,Asia; Bahrain=Manama,Asia; Bangladesh=Dhaka,Asia
Barbados=Bridgetown,North America; Belarus=Minsk,Europe; Belgium=Brussels,Europe
Belize=Belmopan,North America; Benin=Porto-Novo,Africa; Bhutan=Thimphu,Asia; Bolivia=Sucre,South America
Botswana=Gaborone,Africa; Brazil=Brasilia,South America; Brunei=Bandar Seri Begawan,Asia
Bulgaria=Sofia,Europe; Burkina Faso=Ouagadougou,Africa; Burundi=Gitega,Africa; Cambodia=Phnom Penh,Asia
Cameroon=Yaounde,Africa; Canada=Ottawa,North America; Chad=N'Djamena,Africa; Chile=Santiago,South America
China=Beijing,Asia; Colombia=Bogota,South America; Costa Rica=San Jose,North America; Croatia=Zagreb,Europe
Cuba=Havana,North America; Cyprus=Nicosia,Europe; Czechia=Prague,Europe; Denmark=Copenhagen,Europe
Djibouti=Djibouti,Africa; Dominica=Roseau,North America; Ecuador=Quito,South America; Egypt=Cairo,Africa
El Salvador=San Salvador,North America; Eritrea=Asmara,Africa; Estonia=Tallinn,Europe
Eswatini=Mbabane,Africa; Ethiopia=Addis Ababa,Africa; Fiji=Suva,Oceania; Finland=Helsinki,Europe
France=Paris,Europe; Gabon=Libreville,Africa; Gambia=Banjul,Africa; Georgia=Tbilisi,Asia
Germany=Berlin,Europe; Ghana=Accra,Africa; Greece=Athens,Europe; Guatemala=Guatemala City,North America
Guinea=Conakry,Africa; Guyana=Georgetown,South America; Haiti=Port-au-Prince,North America
Honduras=Tegucigalpa,North America; Hungary=Budapest,Europe; Iceland=Reykjavik,Europe; India=New Delhi,Asia
Indonesia=Jakarta,Asia; Iran=Tehran,Asia; Iraq=Baghdad,Asia; Ireland=Dublin,Europe; Israel=Jerusalem,Asia
Italy=Rome,Europe; Jamaica=Kingston,North America; Japan=Tokyo,Asia; Jordan=Amman,Asia
Kazakhstan=Astana,Asia; Kenya=Nairobi,Africa; Kiribati=Tarawa,Oceania; Kuwait=Kuwait City,Asia
Kyrgyzstan=Bishkek,Asia; Laos=Vientiane,Asia; Latvia=Riga,Europe; Lebanon=Beirut,Asia; Lesotho=Maseru,Africa
Liberia=Monrovia,Africa; Libya=Tripoli,Africa; Liechtenstein=Vaduz,Europe; Lithuania=Vilnius,Europe
Luxembourg=Luxembourg,Europe; Madagascar=Antananarivo,Africa; Malawi=Lilongwe,Africa
Malaysia=Kuala Lumpur,Asia; Maldives=Male,Asia; Mali=Bamako,Africa; Malta=Valletta,Europe
Mauritania=Nouakchott,Africa; Mauritius=Port Louis,Africa; Mexico=Mexico City,North America
Moldova=Chisinau,Europe; Monaco=Monaco,Europe; Mongolia=Ulaanbaatar,Asia; Montenegro=Podgorica,Europe
Morocco=Rabat,Africa; Mozambique=Maputo,Africa; Myanmar=Naypyidaw,Asia; Namibia=Windhoek,Africa
Nepal=Kathmandu,Asia; Netherlands=Amsterdam,Europe; New Zealand=Wellington,Oceania
Nicaragua=Managua,North America; Niger=Niamey,Africa; Nigeria=Abuja,Africa; North Korea=Pyongyang,Asia
North Macedonia=Skopje,Europe; Norway=Oslo,Europe; Oman=Muscat,Asia; Pakistan=Islamabad,Asia
Panama=Panama City,North America; Paraguay=Asuncion,South America; Peru=Lima,South America
Philippines=Manila,Asia; Poland=Warsaw,Europe; Portugal=Lisbon,Europe; Qatar=Doha,Asia
Romania=Bucharest,Europe; Russia=Moscow,Europe; Rwanda=Kigali,Africa; Samoa=Apia,Oceania
San Marino=San Marino,Europe; Saudi Arabia=Riyadh,Asia; Senegal=Dakar,Africa; Serbia=Belgrade,Europe
Sierra Leone=Freetown,Africa; Singapore=Singapore,Asia; Slovakia=Bratislava,Europe
Slovenia=Ljubljana,Europe; Somalia=Mogadishu,Africa; South Africa=Pretoria,Africa; South Korea=Seoul,Asia
Spain=Madrid,Europe; Sri Lanka=Colombo,Asia; Sudan=Khartoum,Africa; Suriname=Paramaribo,South America
Sweden=Stockholm,Europe; Switzerland=Bern,Europe; Syria=Damascus,Asia; Taiwan=Taipei,Asia
Tajikistan=Dushanbe,Asia; Tanzania=Dodoma,Africa; Thailand=Bangkok,Asia; Togo=Lome,Africa
Tonga=Nuku'alofa,Oceania; Tunisia=Tunis,Africa; Turkey=Ankara,Asia; Turkmenistan=Ashgabat,Asia
Uganda=Kampala,Africa; Ukraine=Kyiv,Europe; United Kingdom=London,Europe
United States=Washington,North America; Uruguay=Montevideo,South America; Uzbekistan=Tashkent,Asia
Vanuatu=Port Vila,Oceania; Venezuela=Caracas,South America; Vietnam=Hanoi,Asia; Yemen=Sanaa,Asia
Zambia=Lusaka,Africa; Zimbabwe=Harare,Africa
""",
    lambda entry: (entry.split("=")[0], *entry.split("=")[1].rsplit(",", 1)),
)

# Pairs.
OPPOSITES = table(
    """
hot cold; big small; fast slow; happy sad; up down; left right; day night; black white; open closed
full empty; young old; new old; hard soft; high low; in out; light dark; early late; rich poor; strong weak
wet dry; good bad; clean dirty; loud quiet; long short; near far; thick thin; true false; wide narrow
deep shallow; sharp dull; brave afraid; heavy light; first last; push pull; start stop; win lose; buy sell
give take; laugh cry; love hate; north south; east west; summer winter; warm cool; sweet sour; rough smooth
cheap expensive; easy difficult; safe dangerous; awake asleep; always never; before after; above below
inside outside; top bottom; begin end; borrow lend; come go; front back; more less; polite rude
private public; real fake; simple complex; tight loose; visible hidden; sunny cloudy; friend enemy
question answer; yes no
""",
    lambda entry: tuple(entry.split()),
)

# Singular and plural.
PLURALS = table(
    """
cat cats; dog dogs; box boxes; child children; mouse mice; foot feet; tooth teeth; man men; woman women
leaf leaves; knife knives; wolf wolves; baby babies; city cities; fox foxes; bus buses; goose geese
sheep sheep; fish fish; person people; story stories; house houses; tree trees; book books; key keys
toy toys; berry berries; potato potatoes; tomato tomatoes; hero heroes; wish wishes; brush brushes
dish dishes; glass glasses; car cars; star stars; apple apples; half halves; shelf shelves; life lives
ox oxen; deer deer; monkey monkeys; puppy puppies; lady ladies; bench benches; watch watches; class classes
bird birds; pencil pencils
""",
    lambda entry: tuple(entry.split()),
)

# Present and past.
PAST_TENSES = table(
    """
go went; eat ate; see saw; run ran; take took; make made; come came; find found; give gave; know knew
think thought; write wrote; read read; speak spoke; swim swam; sing sang; drink drank; drive drove; fly flew
fall fell; begin began; break broke; bring brought; buy bought; catch caught; choose chose; draw drew
feel felt; forget forgot; get got; grow grew; hear heard; hold held; keep kept; leave left; lose lost
meet met; pay paid; ride rode; say said; sell sold; send sent; sit sat; sleep slept; stand stood
teach taught; tell told; throw threw; wear wore; win won; walk walked; play played; jump jumped; look looked
help helped; paint painted; carry carried; try tried; stop stopped; dance danced; smile smiled
""",
    lambda entry: tuple(entry.split()),
)

LANGUAGES = ["French", "Spanish", "German", "Italian"]

# English, then the languages above; `_` is a space.
TRANSLATIONS = table(
    """
hello bonjour hola hallo ciao; thank_you merci gracias danke grazie; yes oui si ja si; no non no nein no
water eau agua wasser acqua; bread pain pan brot pane; house maison casa haus casa
dog chien perro hund cane; cat chat gato katze gatto; sun soleil sol sonne sole; moon lune luna mond luna
book livre libro buch libro; friend ami amigo freund amico; red rouge rojo rot rosso
blue bleu azul blau blu; green vert verde gruen verde; black noir negro schwarz nero
white blanc blanco weiss bianco; one un uno eins uno; two deux dos zwei due; three trois tres drei tre
four quatre cuatro vier quattro; five cinq cinco fuenf cinque; milk lait leche milch latte
apple pomme manzana apfel mela; cheese fromage queso kaese formaggio; fish poisson pescado fisch pesce
bird oiseau pajaro vogel uccello; tree arbre arbol baum albero; flower fleur flor blume fiore
night nuit noche nacht notte; day jour dia tag giorno; mother mere madre mutter madre
father pere padre vater padre; school ecole escuela schule scuola; car voiture coche auto macchina
door porte puerta tuer porta; table table mesa tisch tavola; city ville ciudad stadt citta
sea mer mar meer mare; horse cheval caballo pferd cavallo; egg oeuf huevo ei uovo; hand main mano hand mano
heart coeur corazon herz cuore; fire feu fuego feuer fuoco; good bon bueno gut buono
big grand grande gross grande; small petit pequeno klein piccolo
goodbye au_revoir adios tschuess arrivederci; please s'il_vous_plait por_favor bitte per_favore
""",
    lambda entry: [word.replace("_", " ") for word in entry.split()],
)

# Name, symbol, atomic number.
ELEMENTS = table(
    """
Hydrogen H 1; Helium He 2; Lithium Li 3; Beryllium Be 4; Boron B 5; Carbon C 6; Nitrogen N 7; Oxygen O 8
Fluorine F 9; Neon Ne 10; Sodium Na 11; Magnesium Mg 12; Aluminium Al 13; Silicon Si 14; Phosphorus P 15
Sulfur S 16; Chlorine Cl 17; Argon Ar 18; Potassium K 19; Calcium Ca 20; Titanium Ti 22; Chromium Cr 24
Iron Fe 26; Cobalt Co 27; Nickel Ni 28; Copper Cu 29; Zinc Zn 30; Silver Ag 47; Tin Sn 50; Iodine I 53
Gold Au 79; Mercury Hg 80; Lead Pb 82; Uranium U 92
""",
    lambda entry: tuple(entry.split()),
)

# Members of categories.
CATEGORIES = {
    "fruit": "apple banana orange pear grape cherry mango peach lemon plum melon kiwi".split(),
    "animal": "dog cat horse cow lion tiger rabbit bear wolf fox mouse elephant".split(),
    "color": "red blue green yellow purple orange black white pink brown gray gold".split(),
    "vegetable": "carrot potato onion pea cabbage spinach pumpkin bean tomato leek".split(),
    "bird": "robin eagle owl sparrow duck swan crow parrot pigeon hawk".split(),
    "tool": "hammer saw drill wrench pliers screwdriver shovel axe".split(),
    "planet": "Mercury Venus Earth Mars Jupiter Saturn Uranus Neptune".split(),
    "instrument": "piano violin guitar drum flute trumpet harp cello".split(),
    "sport": "football tennis hockey golf rugby swimming boxing cricket".split(),
    "vehicle": "car bus train bicycle truck plane boat tram".split(),
    "shape": "circle square triangle rectangle star oval hexagon pentagon".split(),
    "metal": "iron gold silver copper tin zinc lead nickel".split(),
}

DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
MONTHS = "January February March April May June July August September October November December".split()

NAMES = """
Mia Tom Anna Ben Lily Max Sara Leo Ella Sam Nora Finn Zoe Jack Ruby Hugo Ivy Noah Emma Omar Lina Kai Rosa Theo
Maya Adam Clara Otto Nina Paul Alice Bob Carol David Eva Frank Grace Henry Iris John Kate Liam Mary Nick Olga
Peter Quinn Rose Steve Tina Uma Victor Wendy Xavier Yara Zach
""".split()

# What is said of an animal after "A fox is an animal."
ANIMALS = {
    "fox": "It has a bushy tail and lives in the forest.",
    "bear": "It is large and strong and loves honey.",
    "owl": "It flies at night and can see in the dark.",
    "rabbit": "It has long ears and hops very fast.",
    "cat": "It is a small pet that likes to sleep and catch mice.",
    "dog": "It is a loyal pet that likes to play and bark.",
    "horse": "It is a big animal that people can ride.",
    "lion": "It is a big cat with a mane and a loud roar.",
    "elephant": "It is the largest land animal and has a long trunk.",
    "whale": "It is a huge animal that lives in the sea.",
    "penguin": "It is a bird that swims well but cannot fly.",
    "bee": "It is a small insect that makes honey.",
    "frog": "It is a small animal that jumps and lives near water.",
    "duck": "It is a bird that swims in ponds and says quack.",
    "mouse": "It is a tiny animal with a long tail that likes cheese.",
    "turtle": "It is a slow animal with a hard shell.",
    "snake": "It is a long animal with no legs.",
    "wolf": "It is a wild animal that lives in a pack.",
    "cow": "It is a farm animal that gives us milk.",
    "monkey": "It is a clever animal that climbs trees and likes bananas.",
}

# What is said of other things.
TOPICS = {
    "sun": "The sun is a star. It gives the Earth light and heat.",
    "moon": "The moon goes around the Earth. It shines at night because it reflects the light of the sun.",
    "rain": "Rain is water that falls from clouds.",
    "snow": "Snow is frozen water that falls from clouds when it is cold.",
    "computer": "A computer is a machine that can store data and follow instructions.",
    "rainbow": "A rainbow is an arc of colors in the sky. It appears when the sun shines through rain.",
    "volcano": "A volcano is a mountain that can send out hot lava.",
    "language model": "A language model is a program that predicts the next word of a text.",
    "token": "A token is a small piece of text, such as a word or a part of a word.",
    "cluster": "A cluster is a group of computers that work together as one system.",
    "server": "A server is a computer or a program that answers requests from other programs.",
    "Rust": "Rust is a programming language that is fast and safe.",
    "water": "Water is a clear liquid. All living things need it.",
    "gravity": "Gravity is the force that pulls things toward the ground.",
    "music": "Music is a pattern of sounds that people like to hear.",
    "library": "A library is a place where you can read and borrow books.",
    "bridge": "A bridge is a structure that lets people cross a river or a road.",
    "tree": "A tree is a tall plant with a trunk, branches and leaves.",
    "ocean": "An ocean is a very large body of salt water.",
    "map": "A map is a drawing that shows where places are.",
}
