"""Data for TensorBoard: Keras callbacks for any script, and writers for results that are known after a fit.

During a fit, ``scoreboard.py`` writes curves under the tags of ``tags.py``, ``histograms.py`` gates and lengths of
vectors, ``lists.py`` recommendations in words, and ``profile.py`` the graph and a profile. ``trackers.py`` sends
figures to other services, and ``fit.py`` assembles the callbacks of a fit.

After a fit, ``projector.py`` writes item vectors, ``pictures.py`` images, ``settings.py`` HParams and texts, and
``ranking_curves.py`` precision and recall of the ranking model. ``server.py`` starts TensorBoard.
"""
