"""The usual names of kinds of events: how strong such an event is, and how much it counts as a choice of the item."""

from __future__ import annotations

from typing import NamedTuple


class Group(NamedTuple):
    """Names of equal strength and weight; see :mod:`tfllmrec.data.cleaning.event_kinds`.

    Attributes:
      strength: 1 to 4. A stronger event of the same user and item replaces a weaker one.
      weight: From -1, a rejection, to 1, the strongest choice.
      names: English names. The prefix "un" before a name stands for undoing it.
      in_other_languages: Spanish, Portuguese, French, German, Italian, Russian, Chinese and Japanese names.
      as_a_whole: Names that mean something else within a longer name: "pass", but not "boarding_pass".
      as_a_part: Words that say something only within a longer name: "not", "failed".
    """

    strength: int
    weight: float
    names: str
    in_other_languages: str = ""
    as_a_whole: str = ""
    as_a_part: str = ""

    @property
    def undoes(self) -> bool:
        """Whether the names undo an earlier event."""
        return self.weight == 0 and self.strength > 2


#: Words that turn the rest of a name into its opposite.
NEGATIONS = "not no never non dont didnt doesnt isnt wasnt cant wont hasnt havent não pas nicht kein keine не нет"
#: Opinions. With a negation they refuse the item; any other name with a negation stands for what was not done.
OPINIONS = (
    "like liked love loved enjoy enjoyed interested interesting relevant recommend recommended want wanted helpful "
    "useful good me_gusta me_gustó gusta gosto gostei curti curtiu aime gefällt_mir gefaellt_mir mag mi_piace нравится "
    "понравилось понравился"
)
#: If the words of a name belong to several groups, the first of these groups counts. Strengths: 1 for what the
#: system did or the user passed over, 2 for a look, 3 for an opinion or a step before a purchase, 4 for a purchase. An
#: event that undoes another one is as strong as that one, so that the later of the two counts.
GROUPS = (
    Group(
        4,
        0.0,
        "refund refunded order_refunded cancel cancelled canceled cancellation order_cancelled order_canceled "
        "cancel_order",
        "reembolso reembolsado cancelado annuler annule remboursement remboursé storno storniert rimborso annullato "
        "возврат отмена отменил отменён 退款 退货 退貨 取消订单 取消訂單 返金 返品 キャンセル",
    ),
    Group(
        3,
        0.0,
        "remove removed removal remove_from_cart removefromcart removed_from_cart remove_cart removed_cart "
        "remove_basket remove_bag delete deleted undo undone revoke revoked withdraw withdrawn",
        "eliminar eliminado quitar quitado remover removido retirer retiré supprimer supprimé entfernen entfernt "
        "gelöscht rimuovi rimosso descurtir descurtiu удалить удалил удалено 移除 删除 刪除 取消收藏 取消关注 "
        "取消關注 取消点赞 取消點讚 移出购物车 移出購物車 削除 カートから削除 いいね解除 フォロー解除",
    ),
    # The user refused the item, in names with a negation.
    Group(
        3,
        -0.75,
        "not_interested not_for_me no_thanks dont_show do_not_show never_show dont_recommend do_not_recommend "
        "never_recommend",
        "no_me_interesa no_interesa sem_interesse não_tenho_interesse pas_intéressé pas_intéressée naime_pas "
        "jaime_pas nicht_interessiert kein_interesse non_interessa non_mi_interessa не_интересно не_показывать",
    ),
    # The user did not do it, or did not succeed.
    Group(
        1,
        0.0,
        "no_click non_click unpaid",
        as_a_part=f"{NEGATIONS} fail failed failure declined abandon abandoned error intent",
    ),
    Group(
        3,
        -0.75,
        "dislike disliked thumbs_down thumb_down downvote downvoted hide blocked reject rejected mute muted hate hated "
        "banned swipe_left left_swipe swiped_left nope spam report_spam report_abuse uninterested unwanted irrelevant "
        "downrank downranked demote demoted see_fewer show_fewer less_like less_like_this "
        "fewer_like fewer_like_this post_hidden 👎",
        "ocultar ocultado rechazar rechazado odio bloquear bloqueado rejeitar rejeitado detesto détester déteste "
        "masquer masqué bloquer bloqué rejeté missfällt_mir ausblenden ausgeblendet blockiert abgelehnt nascondi "
        "nascosto blocca bloccato rifiutato дизлайк дизлайкнул скрыть скрыл блокировать отклонить отклонил ненавижу "
        "不喜欢 不喜歡 踩 点踩 點踩 讨厌 討厭 不感兴趣 不感興趣 屏蔽 拉黑 隐藏 隱藏 举报 檢舉 よくないね 嫌い 低評価 "
        "興味なし 興味がない 非表示 ブロック 報告",
        as_a_whole="pass passed report reported flag flagged bad negative hidden block ban less fewer see_less "
        "show_less",
    ),
    Group(2, -0.25, "dismiss dismissed bounce bounced quick_exit"),
    Group(
        1,
        -0.25,
        "skip skipped ignore ignored",
        "omitir omitido saltar saltado pular pulou pulado ignorar ignorado ignorer ignoré überspringen übersprungen "
        "ueberspringen uebersprungen ignoriert salta saltato ignorato пропуск пропустить пропустил пропущено 跳过 "
        "跳過 忽略 スキップ",
    ),
    # The system showed the item. A return is in this group, too: libraries log one after every loan.
    Group(
        1,
        0.0,
        "impression impressed imp exposure exposed shown displayed served delivered view_list view_search_results "
        "return returned",
        "impresión impressão affichage anzeige impressione показ 曝光 展示 展现 展現 表示 インプレッション",
    ),
    # The user bought or otherwise obtained the item.
    Group(
        4,
        1.0,
        "purchase purchased buy bought buying transaction transact order ordered order_completed order_placed "
        "place_order purchase_completed checkout_completed complete_checkout payment pay paid sale sold conversion "
        "convert converted subscribe subscribed subscription booking booked reserve reserved reservation rent rented "
        "rental borrow borrowed install installed download downloaded apply applied",
        "compra comprar comprado comprada compró compre comprou pedido pago pagado achat acheter acheté commande "
        "commander commandé paiement payé kauf kaufen gekauft bestellung bestellt bestellen bezahlt acquisto "
        "acquistare acquistato comprato ordine ordinato pagamento pagato покупка покупки купить купил купила куплено "
        "заказ заказал заказано оплата оплатил оплачено 购买 購買 买 買 下单 下單 订单 訂單 支付 付款 成交 购买成功 "
        "購入 注文 決済 予約",
    ),
    # The user saved the item for later, expressed an opinion on it, or began to check out.
    Group(
        3,
        0.75,
        "cart carted in_cart add added add_cart added_cart add_to_cart addtocart addcart atc sc_add basket "
        "add_to_basket addtobasket add_to_bag addtobag bag fav favor favorite favorited favourite favourited "
        "add_to_favorites add_to_favourites collect collected wish wishlist wish_list wishlisted add_to_wishlist "
        "addtowishlist added_wishlist save saved bookmark bookmarked pinned starred watchlist watchlisted wantlist "
        "like liked superlike superliked swipe_right right_swipe swiped_right thumbs_up thumb_up upvote upvoted heart "
        "love loved share shared repost reposted retweet retweeted forward forwarded follow followed comment "
        "commented comment_created reply replied rate rated rating review reviewed checkout begin_checkout "
        "start_checkout initiate_checkout checkout_started add_payment_info add_shipping_info 👍 ❤ ♥",
        "carrito cesta añadir añadido agregar agregado me_gusta compartir compartido seguir seguido guardar guardado "
        "favorito favoritos carrinho adicionar adicionado curtir curtiu curtida gostei adicionar_no_carrinho "
        "adicionado_no_carrinho adicionou_no_carrinho no_carrinho compartilhar compartilhado compartilhou partilhar "
        "partilhado seguiu salvar salvo salvou panier ajouter ajouté ajout favori favoris aime aimé jaime jaime_bien "
        "partage partager partagé suivre suivi abonné enregistrer enregistré sauvegarder sauvegardé warenkorb "
        "hinzufügen hinzugefügt favorit gefällt_mir gefaellt_mir teilen geteilt folgen gefolgt merken gemerkt "
        "merkzettel merkliste speichern gespeichert carrello aggiungi aggiunto preferito preferiti mi_piace condividi "
        "condivisione condiviso segui seguito salva salvato корзина корзину добавить добавил добавлено избранное лайк "
        "лайкнул нравится понравилось поделиться поделился репост подписка подписаться подписался сохранить сохранил "
        "сохранено закладка 加购 加購 加入购物车 加入購物車 添加到购物车 购物车 購物車 收藏 喜欢 喜歡 点赞 點讚 點贊 "
        "赞 讚 分享 转发 轉發 关注 關注 保存 评论 評論 カート カートに追加 カート追加 カートに入れる 買い物かご "
        "いいね 好き 高評価 お気に入り お気に入り追加 シェア 共有 フォロー ブックマーク",
        as_a_whole="pin star good positive",
    ),
    # The user looked at the item.
    Group(
        2,
        0.5,
        "view viewed viewing pv page_view pageview visit visited browse browsed click clicked clk click_out clickout "
        "click_through clickthrough tap tapped detail details detail_view detail_page see seen open opened read "
        "reading watch watched play played playing stream streamed listen listened scrobble scrobbled hover hovered "
        "select selected preview previewed prod_view",
        "vista visto visita visitado visualización visualizar visualizado clic visualização visualizou viu clique "
        "clicou voir consultation consulter consulté visite ansicht aufruf angesehen ansehen angeschaut klick "
        "geklickt geöffnet visualizzazione visualizza visualizzato visitato просмотр просмотры просмотрел посмотрел "
        "просмотрено клик кликнул открыл прочитал 浏览 瀏覽 查看 点击 點擊 观看 觀看 播放 阅读 閱讀 閲覧 クリック "
        "視聴 再生",
        as_a_whole="ver vue vu",
    ),
)
