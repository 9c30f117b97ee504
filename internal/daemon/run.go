package daemon

import (
	"context"
	"os"
	"os/signal"
	"syscall"
	"time"

	"ubcache/internal/control"
	"ubcache/internal/report"
)

// Run starts a cache, answers on its control socket, and returns when it was stopped, by command
// or by signal. ready is called once the devices are there.
func Run(o Options, ready func(control.Status)) error {
	// Executed as /proc/self/exe it would be listed under the name exe.
	_ = os.WriteFile("/proc/self/comm", []byte("ubcache"), 0)
	signals := make(chan os.Signal, 4)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP)
	signal.Ignore(syscall.SIGPIPE)
	in, err := startUnless(signals, o)
	if err != nil {
		return err
	}
	server, err := control.Listen(in.Socket(), in.handlers())
	if err != nil {
		in.abandon()
		return report.Wrap("start cache "+o.Name, err, "")
	}
	go server.Serve()
	go in.watch()
	go in.watchSSD()
	notify("READY=1\nSTATUS=serving")
	ready(in.Status())
	for {
		select {
		case <-in.Done():
			server.Close()
			return nil
		case s := <-signals:
			in.log.Info("stopping", "signal", s.String())
			notify("STOPPING=1")
			ctx, cancel := context.WithTimeout(context.Background(), settleTime+time.Minute)
			err := in.Terminate(ctx)
			cancel()
			server.Close()
			return err
		}
	}
}

// startUnless starts a cache unless a signal comes first.
func startUnless(signals chan os.Signal, o Options) (*Instance, error) {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	over := make(chan struct{})
	defer close(over)
	go func() {
		select {
		case s := <-signals:
			signals <- s // for the caller, if the start is through already
			cancel()
		case <-over:
		}
	}()
	return Start(ctx, o)
}
