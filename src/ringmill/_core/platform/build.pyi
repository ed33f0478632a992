version: str
compiler: str
flags: str
