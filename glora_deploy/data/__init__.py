"""Images: a short text such as ``folder:PATH`` in, labelled splits and network inputs out.

======================  ========================================================================
``load``                a task from its text, which ``spec`` reads; ``image_set`` what comes out
``folders``, ``lists``  where files and labels come from; ``image_folder`` walks, ``text_file``
                        reads lines, ``file_images`` makes sets of them
``check``               what is wrong with all of a task's images, before training
``image_file``          the bytes of one file to pixels; ``preprocess`` to a network's input
``built_in_tasks``      tasks that need no download; ``drawing`` the shapes on them
======================  ========================================================================
"""
