"""What TensorBoard shows: Keras callbacks for any script, and writers for what is known after a fit.

``scoreboard.py`` writes curves under the tags of ``tags.py``, ``histograms.py`` gates and lengths of vectors,
``lists.py`` recommendations in words, ``profile.py`` the graph and a profile. ``trackers.py`` sends figures elsewhere,
and ``fit.py`` puts a fit's callbacks together.

After a fit, ``projector.py`` writes item vectors, ``pictures.py`` images, ``settings.py`` HParams and texts, and
``ranking_curves.py`` precision and recall of the ranking model. ``server.py`` starts TensorBoard.
"""
