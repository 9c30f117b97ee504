//go:build vm

package blkbpf

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"ubcache/internal/vmtest"
	"ubcache/ublk"
)

// envServer makes the test binary a server that leaves one request unanswered, until it is killed.
const envServer = "BLKBPF_TEST_SERVER"

func TestMain(m *testing.M) {
	if os.Getenv(envServer) == "" {
		os.Exit(m.Run())
	}
	fmt.Fprintln(os.Stderr, "server:", serveWithout())
	os.Exit(1)
}

// heldSector is the only one that the server does not answer for. The kernel reads others, to look for
// partitions.
const heldSector = 777 * 8

// serveWithout prints the number of its device, and a line when it has got the request.
func serveWithout() error {
	dev, err := ublk.Create(ramOptions())
	if err != nil {
		return err
	}
	d := &ramDisk{Device: dev, mem: make([]byte, ramBytes), holdAt: heldSector}
	d.hold.Store(true)
	if err := dev.Start(d.handler); err != nil {
		return err
	}
	fmt.Println(dev.ID())
	for {
		d.mu.Lock()
		held := d.held
		d.mu.Unlock()
		if held > 0 {
			fmt.Println("held")
			select {}
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// TestReissue: what a killed server has not answered is issued again to its successor, which learns of
// it what its issuer said, although it is a kernel thread that issues it now.
func TestReissue(t *testing.T) {
	vmtest.Limit(t, 3*time.Minute)
	src, err := Open()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = src.Close() })
	server := exec.Command("/proc/self/exe")
	server.Env, server.Stderr = append(os.Environ(), envServer+"=1"), os.Stderr
	out, err := server.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := server.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = server.Process.Kill() })
	lines := bufio.NewReader(out)
	line, err := lines.ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	id, err := strconv.Atoi(strings.TrimSpace(line))
	if err != nil {
		t.Fatal(err)
	}
	client := exec.Command("ubcache", "run", "--hint", "bypass", "dd",
		fmt.Sprintf("if=/dev/ublkb%d", id), "of=/dev/null", "bs=4k", "count=1",
		fmt.Sprintf("skip=%d", heldSector/8), "iflag=direct")
	if err := client.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := lines.ReadString('\n'); err != nil {
		t.Fatalf("wait for the request at the server: %v", err)
	}
	if err := server.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = server.Wait()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	dev, err := ublk.Recover(ctx, id, ublk.Options{})
	if err != nil {
		t.Fatal(err)
	}
	d := serve(t, dev, src)
	if err := client.Wait(); err != nil {
		t.Error(err)
	}
	for _, n := range d.take() {
		if n.sector != heldSector {
			continue
		}
		if got := attributes(n.Event); !n.found || got != "hint=bypass" || !n.Kernel {
			t.Errorf("found %t, %q, %+v; the client was %d, the server %d, this is %d", n.found, got,
				n.Event, client.Process.Pid, server.Process.Pid, os.Getpid())
		}
		return
	}
	t.Error("the request was not issued again")
}
