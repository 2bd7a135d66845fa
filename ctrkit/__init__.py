"""ctrkit: online CTR models for ad ranking, trained together, judged by GAUC, served light."""

__version__ = "0.1.0"
