// Command ubcache is an SSD cache for block devices, in user space: the command line and the
// daemon in one program.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"strings"

	"ubcache/internal/report"
)

func main() {
	os.Exit(int(run()))
}

// run executes the command line. Errors are one line: what failed, why, and what to do.
func run() report.Code {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	context.AfterFunc(ctx, stop) // a second Ctrl-C ends what does not notice the first
	err := newRoot().ExecuteContext(ctx)
	if err == nil {
		return report.OK
	}
	if !errors.Is(err, errQuiet) {
		fmt.Fprintln(os.Stderr, "ubcache:", strings.ReplaceAll(err.Error(), "\n", "; "))
	}
	var e *report.Error
	if !errors.As(err, &e) && strings.HasPrefix(err.Error(), "unknown command") {
		return report.Usage
	}
	return report.CodeOf(err)
}

// errQuiet is a failure that has been told already.
var errQuiet = errors.New("failed")
