package sim
import "flag"
var crashFlag = flag.Int("crash", 1, "")
