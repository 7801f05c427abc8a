"""What training reads: samples of shards, cut to the frames and size that a model wants, in batches.

::

    settings = DataSettings(shards="out", buckets=[Bucket(frames=17, height=256, width=256, batch_size=4)], images=0.2)
    print(preflight(settings, world=world).to_table())
    with Loader(settings, rank=rank, world=world) as loader:
        loader.load_state_dict(state)           # of any rank of any earlier world
        for batch in loader:                    # epoch after epoch
            video = batch.video.to(device).float() / 127.5 - 1  # B C T H W

settings -> ``shards.read`` finds the shards and catalogues them -> ``assign`` gives each clip a bucket -> ``plan`` puts
an epoch's batches in order -> ``loader`` hands this rank's to ``pool``, whose children ``decode`` their ``spans``.
"""
