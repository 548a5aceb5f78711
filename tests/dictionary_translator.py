"""A translation service for tests, with dictionaries for both directions and a record of the requests."""

TO_GERMAN = {"red": "rot", "car": "Auto", "toy": "Spielzeug", "blue": "blau", "sofa": "Sofa"}
TO_ENGLISH = {"rot": "crimson", "Auto": "automobile", "Spielzeug": "toy", "blau": "drunk", "Sofa": ""}

asked: list[list[str]] = []


def to_german(texts):
    asked.append(list(texts))
    return [" ".join(TO_GERMAN.get(word, word) for word in text.split()) for text in texts]


def to_english(texts):
    return [" ".join(TO_ENGLISH.get(word, word) for word in text.split()) for text in texts]


def shouting(texts):
    return [text.upper() for text in texts]


def silent(texts):
    return texts[:-1]


def broken(texts):
    raise ConnectionError("no route to host")
