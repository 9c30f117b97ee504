// Command ubvm builds and runs the integration VM: a QEMU guest with a Debian kernel, ublk, test
// disks of several kinds and compiled Go tests. See testdata/vm/README.md.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"runtime"
	"syscall"

	"github.com/spf13/cobra"

	"ubcache/cmd/ubvm/internal/vm"
)

func init() {
	// QEMU dies with the thread that started it; the main thread lives as long as the process.
	runtime.LockOSThread()
}

// exitStatus is a command of the guest that failed: it has told why, and ubvm only passes it on.
type exitStatus int

func (e exitStatus) Error() string { return fmt.Sprintf("exit status %d", int(e)) }

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	err := newCommand().ExecuteContext(ctx)
	interrupted := ctx.Err() != nil
	stop()
	var guest *vm.GuestError
	var status exitStatus
	switch {
	case err == nil:
	case interrupted:
		fmt.Fprintln(os.Stderr, "ubvm: interrupted")
		os.Exit(130)
	case errors.As(err, &status):
		os.Exit(int(status))
	default:
		if errors.As(err, &guest) {
			fmt.Fprintf(os.Stderr, "--- end of the guest's console, all of it in %s ---\n%s\n---\n",
				guest.Log, guest.Console)
		}
		fmt.Fprintln(os.Stderr, "ubvm:", err)
		os.Exit(125)
	}
}

func newCommand() *cobra.Command {
	root := &cobra.Command{
		Use:           "ubvm",
		Short:         "Build and run the integration VM",
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	root.AddCommand(setupCommand(), kernelsCommand(), runCommand(), shellCommand(), testCommand(),
		kublkCommand(), faultsCommand())
	return root
}
