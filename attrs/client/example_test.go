package client_test

import (
	"fmt"
	"log"
	"os"

	"ubcache/attrs"
	"ubcache/attrs/client"
)

// An ordinary file is not on a cache: the I/O is done, and nobody handled the attributes.
func Example() {
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
	buf, err := d.Alloc(4096)
	if err != nil {
		log.Fatal(err)
	}
	copy(buf, "of which the cache is to leave no trace")
	var set attrs.Set
	set.SetHint(attrs.HintBypass)
	n, res, err := d.WriteAt(buf, 0, &set)
	channel, why := d.Channel()
	fmt.Println(n, err)
	fmt.Printf("channel %s (%s): hint %s\n", channel, why, res.For(attrs.IDHint).Status)
	// Output:
	// 4096 <nil>
	// channel plain (asked for): hint not handled
}

// Several requests under way at a time.
func ExampleDevice_Submit() {
	d, err := client.Open("/dev/ubcache/data", client.Options{})
	if err != nil {
		log.Fatal(err)
	}
	defer d.Close()
	var set attrs.Set
	set.SetPriority(attrs.Priority{Class: attrs.ClassIdle, Level: 7})
	ops := make([]client.Op, 16)
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
	for i := range ops {
		if err := ops[i].Wait(); err != nil {
			log.Fatal(err)
		}
		fmt.Println(ops[i].N, ops[i].Results.For(attrs.IDPriority).Status)
	}
}
