"""What TensorBoard shows: Keras callbacks for any script, and writers for what is known after a fit.

``scoreboard.py`` writes curves, ``projector.py`` item vectors, ``pictures.py`` images, ``lists.py`` recommendations in
words, ``settings.py`` HParams, ``ranking_curves.py`` precision and recall of the ranking model.
"""
