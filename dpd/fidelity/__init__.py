"""How closely a student really follows its teacher: measures, state sets, audit, report."""
