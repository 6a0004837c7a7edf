"""How the mesh is run: on one machine (`ops.local`), and what containers, dashboards and demo models need."""
