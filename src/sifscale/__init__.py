"""sifscale: 1 km maps of sun-induced chlorophyll fluorescence, and a fair comparison of the ways to make them."""
