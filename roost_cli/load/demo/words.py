"""Word lists of the demo: users, and templates of sentences."""

from __future__ import annotations

from dataclasses import dataclass

# The users of the demo: username, display name and bio. `roost up` prints the log-in of the first one; all others
# follow the second one.
PEOPLE = (
    ("alice", "Alice Hartmann", "Reads more than she posts."),
    ("radio_marlow", "Radio Marlow", "News from the harbour town, all day."),
    ("benno", "Benno Achterberg", "Bakes before dawn."),
    ("chidi_o", "Chidi Okafor", "Rowing, rain, repeat."),
    ("dagny", "Dagny Solvang", "Lighthouse keeper, retired twice."),
    ("emil_k", "Emil Kranz", "Fixes bicycles."),
    ("farida", "Farida Anwar", "Telescope in the shed."),
    ("gus_tree", "Gus Lindqvist", "Forester."),
    ("hanae", "Hanae Mori", "Tea, trains, timetables."),
    ("ivo_petrov", "Ivo Petrov", "Plays the double bass badly."),
    ("jolanda", "Jolanda Vries", "Vegetables, mostly."),
    ("kwame_a", "Kwame Asare", "Maps of places that are gone."),
    ("lotte", "Lotte Brandt", "Night-shift nurse."),
    ("mateo_r", "Mateo Rojas", "Climbs things."),
    ("nadja", "Nadja Horvat", "Choir, second alto."),
    ("osman_t", "Osman Tekin", "Ferry captain."),
    ("priya_s", "Priya Sundar", "Compilers and curry."),
    ("quentin", "Quentin Leroy", "Collects barometers."),
    ("rosa_m", "Rosa Marchetti", "Pasta is a shape problem."),
    ("sven_d", "Sven Dahl", "Skis to work."),
    ("tilda", "Tilda Nowak", "Paints harbours."),
    ("uma_rao", "Uma Rao", "Counts birds for a living."),
    ("viktor", "Viktor Szabo", "Chess by post."),
    ("wanda", "Wanda Kessler", "Librarian."),
    ("xenia_p", "Xenia Pappas", "Sails a very small boat."),
    ("yusuf_b", "Yusuf Demir", "Bread, again."),
    ("zelda_f", "Zelda Fontaine", "Restores radios."),
    ("arne_h", "Arne Holm", "Snow, statistics."),
    ("bettina", "Bettina Roth", "School garden."),
    ("callum", "Callum Reid", "Hill runner."),
    ("delphine", "Delphine Morel", "Comets."),
    ("enzo_g", "Enzo Galli", "Sourdough engineer."),
    ("fiona_m", "Fiona Muir", "Seabirds and soup."),
    ("goran", "Goran Babic", "Trombone."),
    ("hilde", "Hilde Maas", "Tide tables."),
    ("idris", "Idris Bello", "Writes small programs."),
)


@dataclass(frozen=True, slots=True)
class Circle:
    """A group of users with a common topic: its hashtag, and the words that replace `{thing}` and `{place}` in a
    template."""

    tag: str
    things: tuple[str, ...]
    places: tuple[str, ...]


CIRCLES = (
    Circle(
        "harbour", ("the ferry", "the old crane", "a grey seal", "the fog horn"), ("the quay", "pier three", "the bay")
    ),
    Circle("kitchen", ("a rye loaf", "the plum jam", "a pot of lentils", "the good knife"), ("the oven", "the market")),
    Circle(
        "hills",
        ("the ridge path", "a red kite", "the first snow", "my left boot"),
        ("the saddle", "the hut", "the col"),
    ),
    Circle("night_sky", ("Jupiter", "a faint comet", "the new moon", "the ring of Saturn"), ("the shed", "the hill")),
    Circle("music", ("the alto part", "a broken string", "the slow waltz", "the tuba"), ("the chapel", "rehearsal")),
)

SENTENCES = (
    "{thing} again at {place}, and nobody else to see it. #{tag}",
    "Can anyone explain {thing}? Asking from {place}.",
    "Today in small victories: {thing}. #{tag}",
    "I said I would not talk about {thing} this week. I was wrong. #{tag}",
    "Half an hour at {place}, mostly because of {thing}.",
    "@{other} you were right about {thing}. #{tag}",
    "Meet at {place} on Saturday? Bring {thing} if you can, @{other}.",
    "Notes from {place}: {thing}, twice. #{tag}",
    "Somebody left {thing} at {place}. It has been there since Tuesday.",
    "Unpopular opinion: {thing} is better at {place}. #{tag}",
    "Everything I know about {thing} I learned from @{other}.",
    "Quiet morning: {thing}, {place}, nothing else to report. #{tag}",
)

BULLETINS = (
    "Good morning from Marlow: {thing} was seen at {place}. More at noon. #news",
    "The council has voted on {thing}; the result is pinned up at {place}. #news",
    "Listeners write in about {thing}. Please, no more photographs. #news",
    "Tonight at eight: an hour on {thing}, live from {place}. #news",
)

REPLIES = (
    "I was there too, and I still do not believe it.",
    "This is the best thing I have read all week.",
    "Are you sure? I remember it the other way round.",
    "Count me in.",
    "My grandmother would have agreed with you.",
    "Pictures, please!",
    "Again? That makes three times this month.",
    "I have so many questions.",
)
ANSWERS = (
    "Come by and see for yourself.",
    "Quite sure. I wrote it down.",
    "You are too kind.",
    "Next time I will bring a camera.",
    "Fair point, I will look again.",
)
QUOTES = (
    "Everybody should read this.",
    "As I have been saying for years:",
    "Filing this under things I wish I had said first.",
    "Somebody had to say it.",
)
