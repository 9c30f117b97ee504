package client_test

import (
	"errors"
	"fmt"
	"log"
	"os"

	"ubcache/attrs"
	"ubcache/attrs/client"
)

// A device of a cache by its name, which needs no block device. With one it is
//
//	d, err := client.Open("/dev/ubcache/data", client.Options{})
//
// and the same for a partition of it, a logical volume or a file on it; the rest stays as it is.
func Example() {
	d, err := client.Open("", client.Options{Device: "data"})
	if err != nil {
		log.Fatal(err)
	}
	defer d.Close()
	buf, err := d.Alloc(64 << 10)
	if err != nil {
		log.Fatal(err)
	}
	var set attrs.Set
	set.SetHint(attrs.HintBypass)
	n, res, err := d.ReadAt(buf, 0, &set)
	fmt.Println(n, err)
	fmt.Println("hint:", res.For(attrs.IDHint))
	// Output:
	// 65536 <nil>
	// hint: handled
}

// The first read brings the data into the cache, the second one finds it there.
func ExampleDevice_ReadAt() {
	d, err := client.Open("", client.Options{Device: "data"})
	if err != nil {
		log.Fatal(err)
	}
	defer d.Close()
	buf, err := d.Alloc(4096)
	if err != nil {
		log.Fatal(err)
	}
	set, err := attrs.ParseSet("hint=cache,timing")
	if err != nil {
		log.Fatal(err)
	}
	var res attrs.Results
	for range 2 {
		if _, res, err = d.ReadAt(buf, 1<<20, &set); err != nil {
			log.Fatal(err)
		}
	}
	t, _ := res.Timing()
	fmt.Printf("from %v; the backing device was needed: %t\n", res.Origin, t.Backing > 0)
	// Output: from ssd; the backing device was needed: false
}

// A checksum of the data goes along with it. What was damaged on the way has no effect.
func ExampleDevice_WriteAt() {
	d, err := client.Open("", client.Options{Device: "data"})
	if err != nil {
		log.Fatal(err)
	}
	defer d.Close()
	buf, err := d.Alloc(8192)
	if err != nil {
		log.Fatal(err)
	}
	copy(buf, "precious")
	var set attrs.Set
	set.SetChecksum(attrs.Checksum{
		Algorithm: attrs.CRC32C, Sums: attrs.CRC32C.AppendSums(nil, buf),
	})
	set.SetMode(attrs.Writethrough)
	set.Require(attrs.IDChecksum, attrs.IDMode)
	_, res, err := d.WriteAt(buf, 2<<20, &set)
	fmt.Println(res.For(attrs.IDChecksum), err)

	buf[5000] ^= 1
	_, res, err = d.WriteAt(buf, 2<<20, &set)
	block, _ := res.Mismatch()
	fmt.Println("block", block, errors.Is(err, attrs.ErrnoMismatch))
	// Output:
	// handled <nil>
	// block 1 true
}

// Several requests under way at a time.
func ExampleDevice_Submit() {
	d, err := client.Open("", client.Options{Device: "data"})
	if err != nil {
		log.Fatal(err)
	}
	defer d.Close()
	var set attrs.Set
	set.SetPriority(attrs.Priority{Class: attrs.ClassIdle, Level: 7})
	ops := make([]client.Op, 8)
	for i := range ops {
		buf, err := d.Alloc(1 << 20)
		if err != nil {
			log.Fatal(err)
		}
		ops[i] = client.Op{Kind: client.Read, Buf: buf, Off: int64(i) << 20, Attrs: &set}
		if err := d.Submit(&ops[i]); err != nil {
			log.Fatal(err)
		}
	}
	bytes, handled := 0, 0
	for i := range ops {
		if err := ops[i].Wait(); err != nil {
			log.Fatal(err)
		}
		bytes += ops[i].N
		if ops[i].Results.For(attrs.IDPriority).Status == attrs.Handled {
			handled++
		}
	}
	fmt.Println(bytes, "bytes; the priority was handled", handled, "times")
	// Output: 8388608 bytes; the priority was handled 8 times
}

// What the device acts on, before anything is sent to it.
func ExampleDevice_Query() {
	d, err := client.Open("", client.Options{Device: "data"})
	if err != nil {
		log.Fatal(err)
	}
	defer d.Close()
	list, err := d.Query()
	if err != nil {
		log.Fatal(err)
	}
	for _, s := range list {
		fmt.Println(s.ID, s.Supported)
	}
	// Output:
	// hint true
	// mode true
	// prio true
	// checksum true
	// lifetime true
	// tenant true
	// deadline true
	// timing true
	// trace true
}

// An ordinary file is not on a cache: the I/O is done, nobody handles the attributes, and what is
// required fails before any effect.
func ExampleDevice_Channel() {
	f, err := os.CreateTemp("", "example")
	if err != nil {
		log.Fatal(err)
	}
	defer os.Remove(f.Name())
	_ = f.Close()

	d, err := client.Open(f.Name(), client.Options{Channel: client.Plain})
	if err != nil {
		log.Fatal(err)
	}
	defer d.Close()
	channel, why := d.Channel()
	fmt.Printf("%s (%s)\n", channel, why)

	var set attrs.Set
	set.SetHint(attrs.HintBypass)
	n, res, err := d.WriteAt([]byte("of which no cache is to keep a trace"), 0, &set)
	fmt.Println(n, err, res.For(attrs.IDHint))

	set.Require(attrs.IDHint)
	n, _, err = d.WriteAt([]byte("not written"), 0, &set)
	fmt.Println(n, errors.Is(err, attrs.ErrnoRefused))
	// Output:
	// plain (asked for)
	// 36 <nil> not handled
	// 0 true
}
