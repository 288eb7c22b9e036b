"""Where simulations and attacks are computed: on Ray, or in this process."""
