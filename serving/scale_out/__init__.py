"""One front and several replicas of the engine, on Ray Serve; needs the extra ``ray``."""
