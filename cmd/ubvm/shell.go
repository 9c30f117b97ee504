package main

import (
	"context"
	"errors"
	"os"
	"os/signal"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"ubcache/cmd/ubvm/internal/frame"
	"ubcache/cmd/ubvm/internal/progress"
	"ubcache/cmd/ubvm/internal/vm"
)

func shellCommand() *cobra.Command {
	var f runFlags
	cmd := &cobra.Command{
		Use:   "shell",
		Short: "Open a root shell in the guest, with ubcache on its PATH",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx := cmd.Context()
			return f.boot(ctx, func(m *machine, c *vm.Config) error {
				if err := m.addUbcache(ctx, c, false); err != nil {
					progress.Note("%v\ngoing on without ubcache", err)
				}
				return nil
			}, openShell)
		},
	}
	f.add(cmd.Flags(), 12*time.Hour)
	return cmd
}

func openShell(ctx context.Context, c *vm.Config) error {
	progress.Note("disks are in /dev/vmdisk; exit or Ctrl-D powers the guest off")
	stdin := int(os.Stdin.Fd())
	old, err := unix.IoctlGetTermios(stdin, unix.TCGETS)
	if err != nil {
		return errors.New("standard input is no terminal: use ubvm run -- command")
	}
	raw := *old
	raw.Iflag &^= unix.BRKINT | unix.ICRNL | unix.INPCK | unix.ISTRIP | unix.IXON
	raw.Oflag &^= unix.OPOST
	raw.Lflag &^= unix.ECHO | unix.ICANON | unix.IEXTEN | unix.ISIG
	raw.Cc[unix.VMIN], raw.Cc[unix.VTIME] = 1, 0
	c.Job.TTY = true
	c.Job.Env = append(c.Job.Env, "TERM="+os.Getenv("TERM"))
	c.Job.Steps = []frame.Step{{Name: "shell", Args: []string{"bash", "-l"}}}
	c.Stdin = os.Stdin
	sizes := make(chan [2]uint16, 1)
	winch := make(chan os.Signal, 1)
	signal.Notify(winch, unix.SIGWINCH)
	winch <- unix.SIGWINCH // the first size
	go func() {
		for range winch {
			if ws, err := unix.IoctlGetWinsize(stdin, unix.TIOCGWINSZ); err == nil {
				sizes <- [2]uint16{ws.Row, ws.Col}
			}
		}
	}()
	c.Resizes = sizes
	// Until the guest is up, Ctrl-C interrupts as usual.
	c.OnReady = func(frame.Boot, int) { _ = unix.IoctlSetTermios(stdin, unix.TCSETS, &raw) }
	defer func() { _ = unix.IoctlSetTermios(stdin, unix.TCSETS, old) }()
	return boot(ctx, c)
}
