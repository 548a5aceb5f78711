import unicodedata

import pandas as pd
import pytest
from small_datasets import finding

from tfllmrec.config import DataConfig
from tfllmrec.data import Dataset, dataset_from_frames
from tfllmrec.data.cleaning.event_kinds import are_event_kinds, is_known_kind, kind_strength, kind_weight, plain_kind
from tfllmrec.data.cleaning.kind_words import GROUPS
from tfllmrec.errors import ConfigError, DataError


def made(rows, names="user item event_type timestamp", **config):
    return dataset_from_frames(pd.DataFrame(rows, columns=names.split()), config=DataConfig(**config))


def kept(dataset):
    return list(zip(dataset.events.item_id, dataset.events.kind, dataset.events.timestamp_s, strict=True))


LOG = [
    ("u", "a", "purchase", 10),
    ("u", "a", "view", 20),
    ("u", "b", "cart", 5),
    ("u", "b", "view", 6),
    ("u", "b", "cart", 7),
    ("u", "c", "view", 8),
]


@pytest.mark.parametrize(("repeats", "cart"), [("last", 7), ("first", 5)])
def test_a_weaker_event_never_replaces_a_stronger_one(repeats, cart):
    data = made(LOG, repeats=repeats)
    assert sorted(kept(data)) == [("a", "purchase", 10), ("b", "cart", cart), ("c", "view", 8)]
    weaker = finding(data, "a weaker event than another one of the same user and item ('view': 2)")
    assert (weaker.count, weaker.action, weaker.example) == (
        2,
        "dropped",
        "events table:1, column 'event_type': 'view'",
    )
    assert finding(data, "the same user and item again").count == 1
    assert data.report.rows_in["events"] == 6 == data.report.rows_kept["events"] + 3
    assert "kind <- event_type" in data.report.sources[0]


def test_all_events_are_kept_where_repeats_are():
    assert len(kept(made(LOG, repeats="all"))) == 6


def test_without_kinds_the_later_event_stays():
    data = made([row[:2] + row[3:] for row in LOG], "user item timestamp")
    assert kept(data) == [("b", "", 7), ("c", "", 8), ("a", "", 20)]
    assert data.describe()["kinds"] == {}
    assert finding(data, "the same user and item again (kept: the last)").count == 3
    unordered = made([row[:2] for row in LOG], "user item")
    assert finding(unordered, "the same user and item again (kept: one of them)").count == 3
    rated = made([(*row[:2], 1 + row[3] % 2) for row in LOG], "user item rating")
    assert finding(rated, "the same user and item again (kept: the highest rating)").count == 3


@pytest.mark.parametrize(
    ("column", "weak", "strong"),
    [
        ("event_type", "view", "purchase"),  # REES46
        ("event", "addtocart", "transaction"),  # RetailRocket
        ("behavior", "pv", "fav"),  # Taobao
        ("behavior_type", "cart", "buy"),
        ("type", "clicks", "orders"),  # OTTO
        ("eventType", "VIEW", "BOOKMARK"),  # DeskDrop
        ("event_name", "view_item", "add_to_cart"),  # Google Analytics 4
        ("event_name", "view_item_list", "select_item"),
        ("Event Name", "Product Viewed", "Product Added To Wishlist"),  # Segment
        ("event", "Product Added", "Order Completed"),
        ("event_name", "product_viewed", "checkout_completed"),  # Shopify
        ("EVENT_TYPE", "Watch", "Like"),  # Amazon Personalize
        ("product_action", "detail", "purchase"),  # Coveo
        ("action", "impression", "click"),
        ("interaction_type", "skip", "play"),
        ("action_type", "viewProduct", "productPurchased"),
        ("kind", "page view", "in-cart"),
    ],
)
def test_kinds_of_other_tools(column, weak, strong):
    frame = pd.DataFrame({"user": ["u", "u"], "item": ["a", "a"], column: [strong, weak], "timestamp": [1, 2]})
    assert dataset_from_frames(frame).events.kind.tolist() == [strong]
    assert dataset_from_frames(frame, config=DataConfig(repeats="first")).events.kind.tolist() == [strong]


@pytest.mark.parametrize(("one", "other"), [("like", "dislike"), ("cart", "remove_from_cart"), ("share", "favourite")])
def test_of_equal_kinds_the_later_one_stays(one, other):
    for kinds in ([one, other], [other, one]):
        assert made([("u", "a", kind, n) for n, kind in enumerate(kinds)]).events.kind.tolist() == kinds[1:]


@pytest.mark.parametrize(
    ("one", "later", "left"),
    [
        *[("view", no, no) for no in ("block", "reject", "dismiss", "Dislike", "don't like", "bounce")],
        ("click", "mute", "mute"),
        ("like", "rejected", "rejected"),
        ("cart", "delete", "delete"),
        ("install", "uninstall", "uninstall"),
        ("subscribe", "unsubscribe", "unsubscribe"),
        ("purchase", "refund", "refund"),
        ("order", "order_cancelled", "order_cancelled"),
        ("purchase", "dislike", "dislike"),
        ("purchase", "cancel_like", "purchase"),
        ("borrow", "return", "borrow"),
        ("play", "skip", "play"),
        ("dislike", "purchase", "purchase"),
        ("dislike", "view", "dislike"),
        ("refund", "purchase", "purchase"),
    ],
)
def test_a_later_rejection_or_undoing_counts(one, later, left):
    known = [("u", "a", one, 1), ("v", "a", "view", 0)]
    data = made([*known, ("u", "a", later, 2)])
    assert sorted(data.events.kind) == sorted([left, "view"])
    grown = made(known).extend(
        pd.DataFrame([("u", "a", later, 2)], columns=["user", "item", "event_type", "timestamp"])
    )
    assert sorted(grown.events.kind) == sorted(data.events.kind)


def test_what_comes_before_a_rejection_is_reported():
    data = made([("u", "a", "purchase", 1), ("u", "a", "dislike", 2), ("u", "a", "view", 3), ("u", "b", "like", 4)])
    assert kept(data) == [("a", "dislike", 2), ("b", "like", 4)]
    assert finding(data, "the same user refused the item later ('purchase': 1)").action == "dropped"
    unordered = made([("u", "a", "purchase"), ("u", "a", "dislike")], "user item event_type")
    assert unordered.events.kind.tolist() == ["purchase"]  # nothing says which came later


@pytest.mark.parametrize("name", ["kind", "event.kind"])
def test_weights_hold_for_other_spellings(name):
    rows = [("u", "a", "View", 1), ("u", "a", "HIDE", 2), ("u", "b", "View", 3)]
    data = made(rows, fields={name: {"weights": {"view": 1, "hide": -0.1}}})
    assert kept(data) == [("a", "View", 1), ("b", "View", 3)] and not data.choices.tolist().count(False)
    assert not any("known" in found.what for found in data.report.findings)


def test_strengths():
    assert 0 == kind_strength("") == kind_strength("1") == kind_strength("activate")
    ranks = [kind_strength(kind) for kind in ("Impressions", "page-view", "WishList", "bought")]
    assert ranks == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("weight", "kinds"),
    [
        (1.0, ["purchase", "Bought", "order_completed"]),
        (0.75, ["AddToCart", "likes", "share"]),
        (0.5, ["view", "Product Viewed", "clicks"]),
        (0.25, ["zzz", ""]),
        (
            0.0,
            ["impression", "remove_from_cart", "unlike", "refund", "order cancelled", "ad_impression", "unsubscribe"],
        ),
        (0.0, ["remove_from_wishlist", "RemovedFromWishlist", "uninstalls"]),
        (0.0, ["un_favorite", "unsave", "undo_like", "remove_favorite", "unhide", "undo dislike", "not_bought", "no"]),
        (0.0, ["cart_abandoned", "unread", "didn't click", "取消收藏", "Удалить из корзины", "never disliked"]),
        (-0.25, ["skip", "Ignored", "song_skipped", "dismiss", "bounce", "quick_exit"]),
        (-0.75, ["dislike", "thumbs-down", "ThumbsDown", "not_interested", "hidden", "video_dislike", "post_hidden"]),
        (
            -0.75,
            [
                "dislike button clicked",
                "thumbs_down_click",
                "artist_blocked",
                "hide_video",
                "hate",
                "spam",
                "pass",
                "swipe_left",
                "👎",
            ],
        ),
        (-0.75, ["don't like", "Don’t Like", "didntLike", "did-not-like", "no like", "less_like_this", "see fewer"]),
        (-0.75, ["not_for_me", "never_show_again", "uninterested", "not relevant", "DOWNRANK", "report", "bad"]),
        (0.75, ["👍🏻", "❤️", "super_like", "swipeRight", "good", "Pinned", "Adicionar no carrinho"]),
        # "pass", "report", "block" and "hidden" are rejections only alone.
        (0.5, ["boarding_pass_view", "view report", "content_block_click", "hidden_gem_view"]),
    ],
)
def test_weights(weight, kinds):
    assert [kind_weight(kind) for kind in kinds] == [weight] * len(kinds)


@pytest.mark.parametrize(
    "kinds",
    [
        # view, cart, purchase, like, share, follow, save, skip, dislike
        "ver,carrito,compra,me gusta,compartir,seguir,guardar,omitir,no me gusta",
        "visualização,carrinho,comprou,curtir,compartilhar,seguir,salvar,pular,não gostei",
        "vue,panier,achat,j’aime,partager,suivre,enregistrer,ignorer,je n'aime pas",
        "ansicht,warenkorb,gekauft,gefällt mir,teilen,folgen,merken,überspringen,gefällt mir nicht",
        "visto,carrello,acquisto,mi piace,condividi,segui,salva,salta,non mi piace",
        "просмотр,корзина,покупка,лайк,поделиться,подписаться,сохранить,пропуск,не нравится",
        "浏览,加入购物车,购买,喜欢,分享,关注,收藏,跳过,不喜欢",
        "閲覧,カート,購入,いいね,シェア,フォロー,保存,スキップ,よくないね",
    ],
)
def test_kinds_in_other_languages(kinds):
    weights = [0.5, 0.75, 1.0, 0.75, 0.75, 0.75, 0.75, -0.25, -0.75]
    assert [kind_weight(kind) for kind in kinds.split(",")] == weights
    assert [kind_weight(kind.upper()) for kind in kinds.split(",")] == weights
    assert are_event_kinds(pd.Series(kinds.split(",")[:-1]))


def test_accents_may_be_left_out():
    for kind in ("añadir_al_carrito", "gefällt_mir", "não gostei", "не понравилось", "überspringen"):
        plain = "".join(c for c in unicodedata.normalize("NFKD", kind) if not unicodedata.combining(c))
        assert kind_weight(plain) == kind_weight(kind) == kind_weight(unicodedata.normalize("NFD", kind)) != 0.25


def test_each_name_belongs_to_one_group_and_has_its_weight():
    every = [f"{group.names} {group.in_other_languages} {group.as_a_whole}".split() for group in GROUPS]
    names = [plain for group in every for plain in {plain_kind(name) for name in group}]
    assert len(names) == len(set(names)) and "" not in names
    for group, of_group in zip(GROUPS, every, strict=True):
        for name in of_group:
            for spelling in (name, name.upper(), name.replace("_", " "), name.replace("_", "-"), name.title()):
                assert is_known_kind(spelling), spelling
                assert (kind_strength(spelling), kind_weight(spelling)) == (group.strength, group.weight), spelling


def test_unknown_and_missing_kinds_are_counted_and_are_the_weakest():
    rows = [("u", "a", "view", 1), ("u", "a", "zap", 2), ("u", "b", "view", 3), ("u", "b", None, 4)]
    data = made([*rows, ("u", "c", "zap", 5), ("u", "d", "view", 6)])
    assert kept(data) == [("a", "view", 1), ("b", "view", 3), ("c", "zap", 5), ("d", "view", 6)]
    unknown = finding(
        data,
        "the kind of event is not known: it counts as a weak choice, with weight 0.25, and an event of a known kind, "
        "of the same user and item, replaces it ('zap': 2)",
    )
    assert (unknown.count, unknown.action) == (2, "kept")
    assert unknown.example == "events table:1, column 'event_type': 'zap'"
    assert finding(data, "no kind of event").count == 1


@pytest.mark.parametrize(
    ("column", "values", "told"),
    [
        ("type", ["book", "dvd", "book"], "'book': 2, 'dvd': 1"),
        ("behavior_type", [1, 4, 1], "'1': 2, '4': 1"),
        ("kind", ["film", "series", "film"], "'film': 2, 'series': 1"),
    ],
)
def test_values_that_are_no_known_kinds_are_not_used_and_told(column, values, told):
    frame = pd.DataFrame({"user": ["u", "u", "u"], "item": ["a", "b", "a"], column: values, "timestamp": [1, 2, 3]})
    data = dataset_from_frames(frame)
    assert kept(data) == [("b", "", 2), ("a", "", 3)]
    found = finding(data, f"column {column!r} is not used as the kind of event")
    assert told in found.what and found.action == "kept" and found.count == 3


def test_ids_of_events_are_no_kinds():
    frame = pd.DataFrame({"user": "u", "item": [f"i{n}" for n in range(99)], "event": [f"e{n}" for n in range(99)]})
    data = dataset_from_frames(frame)
    assert set(data.events.kind) == {""} and not data.report.findings
    assert "other columns: event" in data.report.sources[0]


def test_a_mapped_column_is_taken_as_it_is():
    rows = [("u", "a", "zakaz", "view", 1), ("u", "a", "prosmotr", "view", 2), ("v", "a", "view", "view", 3)]
    data = made(rows, "user item what event_type timestamp", columns={"kind": "what"}, repeats="all")
    assert data.events.kind.tolist() == ["zakaz", "prosmotr", "view"]
    assert finding(data, "the kind of event is not known").count == 2
    with pytest.raises(ConfigError, match=r"expected one of .*kind"):
        made(rows, "user item what event_type timestamp", columns={"kinds": "what"})
    with pytest.raises(DataError, match="maps kind to 'nothing'"):
        made(rows, "user item what event_type timestamp", columns={"kind": "nothing"})


def test_kinds_are_saved_fingerprinted_and_described(tmp_path):
    data = made(LOG)
    data.save(tmp_path / "saved")
    back = Dataset.load(tmp_path / "saved")
    assert kept(back) == kept(data) and back.fingerprint == data.fingerprint
    assert data.describe()["kinds"] == {"cart": 1, "view": 1, "purchase": 1}
    other = made([(*row[:2], row[2].replace("purchase", "order"), row[3]) for row in LOG])
    assert other.fingerprint != data.fingerprint


@pytest.mark.parametrize(
    ("kind", "like"),
    [
        ("ecommerce_purchase", "purchase"),
        ("PDP View", "view"),
        ("ViewContent", "view"),
        ("product_added_to_cart_success", "cart"),
        ("order_cancelled", "order"),
        ("like removed", "like"),
        ("refund clicked", "purchase"),
        ("purchaseFailed", "impression"),
        ("activate", ""),
    ],
)
def test_an_unknown_kind_is_as_strong_as_its_words(kind, like):
    assert kind_strength(kind) == kind_strength(like)


def test_single_words_do_not_make_a_column_kinds_of_events():
    assert not are_event_kinds(pd.Series(["play set", "watch strap", "view finder"]))


def test_weights_say_how_strong_coded_kinds_are():
    rows = [
        ("u", "a", 4, 1),
        ("u", "a", 1, 2),
        ("u", "b", 1, 1),
        ("u", "b", 4, 2),
        ("v", "a", 9, 3),
        ("v", "a", "buy", 2),
    ]
    columns, weights = {"kind": "code"}, DataConfig(fields={"kind": {"weights": {4: 1, 1: 0.1}}}).fields
    data = made(rows, "user item code timestamp", columns=columns, fields=weights)
    assert kept(data) == [("a", "4", 1), ("b", "4", 2), ("a", "buy", 2)]
    without = made(rows, "user item code timestamp", columns=columns)
    assert sorted(kept(without)) == [("a", "1", 2), ("a", "buy", 2), ("b", "4", 2)]
    assert "data.fields.kind.weights" in finding(without, "the kind of event is not known").what


def test_what_was_not_done_replaces_nothing():
    assert kind_strength("not_purchased") == kind_strength("impression") and kind_weight("not_purchased") == 0


@pytest.mark.parametrize("column", ["feedback", "actionName", "verb", "signal", "Event Category", "evt"])
def test_columns_with_further_names_are_kinds(column):
    frame = pd.DataFrame({"user": "u", "item": ["a", "b"], column: ["click", "dislike"], "timestamp": [1, 2]})
    assert kept(dataset_from_frames(frame)) == [("a", "click", 1), ("b", "dislike", 2)]


def test_a_column_of_another_name_that_holds_kinds_is_told():
    frame = pd.DataFrame({"user": "u", "item": ["a", "b", "c"], "Evento": ["view", "buy", "view"], "order": [1, 2, 3]})
    data = dataset_from_frames(frame)
    found = finding(data, "column 'Evento' looks like the kind of event ('view': 2, 'buy': 1)")
    assert found.action == "kept" and found.count == 3 and "data.columns.kind=Evento" in found.what
    assert set(data.events.kind) == {""} and data.events.Evento.tolist() == ["view", "buy", "view"]
    for values in (["shipped", "refunded", "cancelled"], ["yes", "no", "no"], ["red", "view", "blue"], ["buy"] * 3):
        assert not dataset_from_frames(frame.assign(Evento=values)).report.findings
    assert not dataset_from_frames(frame.assign(event=["view", "cart", "view"])).report.findings
    mapped = dataset_from_frames(frame, config=DataConfig(columns={"kind": "Evento"}))
    assert mapped.events.kind.tolist() == ["view", "buy", "view"] and not mapped.report.findings


def test_kinds_in_columns_of_their_own_are_doubted():
    frame = pd.DataFrame(
        {"user": "u", "item": ["a", "b", "c"], "is_click": [1, 0, 1], "cart": [0, 0, 1], "age": [0, 1, 1]}
    )
    found = finding(dataset_from_frames(frame), "flags in 'is_click', 'cart' are not read as kinds of events")
    assert found.action == "doubted" and "including the 1 rows without any flag" in found.what
    assert not dataset_from_frames(frame.assign(event=["view", "cart", "view"])).report.doubts()


def test_returns_of_goods_are_doubted():
    frame = pd.DataFrame({"user": ["u", "v", "v"], "item": ["a", "a", "b"], "Quantity": ["2", "-1", "1"]})
    told = finding(dataset_from_frames(frame), "'Quantity' is negative, as for returns and cancellations")
    assert (told.count, told.action) == (1, "doubted")
    assert not dataset_from_frames(frame.assign(kind=["purchase", "refund", "purchase"])).report.doubts()
