"""Part of dpd: import it as dpd.agents."""

if __name__ != "dpd.agents":
    raise ImportError("import dpd.agents: the folder is called agents, the package dpd.agents")
