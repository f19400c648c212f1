"""Commands about this machine: doctor, engines, the lines at a login. For the parser."""
