"""The product at work with nothing installed: an embedded broker, a pipeline that errs on purpose, a worker, and a witness.

Five processes, which share nothing but the broker and lines of JSON::

    gapstream demo ──starts──> worker      the product, as anybody runs it
      embedded broker  ──────> pipeline    a producer, and a consumer application that errs by a seed and says what it did
      compares         ──────> detector    reads the alerts topic only, and says what it found
                       ──────> guard       ends the others when the command is gone, however it went

What the pipeline says that it did and what the detector says that it found must be equal.
"""
