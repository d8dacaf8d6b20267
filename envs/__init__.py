"""Part of dpd: import it as dpd.envs."""

if __name__ != "dpd.envs":
    raise ImportError("import dpd.envs: the folder is called envs, the package dpd.envs")
