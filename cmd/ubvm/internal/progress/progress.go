// Package progress tells the person in front of the terminal what takes time.
package progress

import (
	"fmt"
	"os"
	"time"
)

var begin = time.Now()

// Note prints one line with the time since the program's start.
func Note(format string, args ...any) {
	fmt.Fprintf(os.Stderr, "ubvm %6.1fs  %s\n", time.Since(begin).Seconds(),
		fmt.Sprintf(format, args...))
}

// Start announces a step; the returned function announces its end with the time it took.
func Start(step string) (done func()) {
	Note("%s …", step)
	start := time.Now()
	return func() { Note("%s: %.1f s", step, time.Since(start).Seconds()) }
}
