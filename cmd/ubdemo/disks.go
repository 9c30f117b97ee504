package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// makeDisks finds the VM's disks or makes them of files.
func (d *demo) makeDisks() error {
	if err := d.workFolder(); err != nil {
		return err
	}
	say("Linux %s, configuration CONF=%s", kernel(), d.config)
	if ssd, slow := os.Getenv("UBVM_SSD"), os.Getenv("UBVM_SLOW"); ssd != "" && slow != "" {
		d.ssd, d.slow, d.throttled = ssd, slow, true
		say("SSD: %s. Slow disk: %s, which allows 120 requests a second.", ssd, slow)
		if os.Getenv("UBVM_ACCEL") != "kvm" {
			say("This VM's CPUs are emulated: compare speeds with each other only.")
		}
		return nil
	}
	var err error
	if d.ssd, err = d.loop("ssd", "1G"); err != nil {
		return err
	}
	if d.slow, err = d.loop("disk", "2G"); err != nil {
		return err
	}
	if slow, err := d.delay(d.slow); err != nil {
		say("no dm-delay here (%v): the slow disk is as fast as the SSD,", err)
		say("so look at the hits and not at the speeds.")
	} else {
		d.slow, d.throttled = slow, true
		say("The slow disk answers after 8 ms.")
	}
	return nil
}

// loop makes a loop device of a new file.
func (d *demo) loop(name, size string) (string, error) {
	file := filepath.Join(d.work, name)
	if _, err := d.run("truncate", "-s", size, file); err != nil {
		return "", err
	}
	dev, err := d.run("losetup", "--show", "-f", file)
	if err != nil {
		return "", err
	}
	d.later("losetup", "-d", dev)
	return dev, nil
}

// delay makes a slow disk of a fast one.
func (d *demo) delay(dev string) (string, error) {
	if _, err := d.quietly("modprobe", "dm_delay"); err != nil {
		return "", err
	}
	size, err := d.quietly("blockdev", "--getsz", dev)
	if err != nil {
		return "", err
	}
	if _, err := strconv.ParseInt(size, 10, 64); err != nil {
		return "", err
	}
	name := fmt.Sprintf("ubdemo-%d", os.Getpid())
	table := fmt.Sprintf("0 %s delay %s 0 8", size, dev)
	if _, err := d.run("dmsetup", "create", name, "--table", table); err != nil {
		return "", err
	}
	d.later("dmsetup", "remove", "--retry", name)
	path := "/dev/mapper/" + name
	if _, err := os.Stat(path); err != nil {
		_, _ = d.quietly("dmsetup", "mknodes", name)
	}
	return path, nil
}

// makeCache formats, starts and attaches.
func (d *demo) makeCache() error {
	for _, args := range [][]string{
		{"format", d.ssd, "--name=demo"},
		{"start"},
		{"attach", d.slow, "--name=demo", "--mode=writearound"},
	} {
		if err := d.tell(args...); err != nil {
			return err
		}
	}
	return nil
}

// makeFiles makes a filesystem and a file that only the slow disk has.
func (d *demo) makeFiles() error {
	if _, err := d.run("mkfs.ext4", "-q", "-F", link); err != nil {
		return err
	}
	if _, err := d.run("mount", link, d.mount); err != nil {
		return err
	}
	d.mounted = true
	data := filepath.Join(d.mount, "data")
	if err := writeFile(data, readBytes); err != nil {
		return err
	}
	say("wrote %s, %s: in mode writearound it is on the slow disk only", data, mb(readBytes))
	_, err := d.ubcache("set", "demo", "mode=writeback")
	if err == nil {
		say("from now on writes go to the SSD first; nothing was unmounted for that")
	}
	return err
}

func mb(n int64) string {
	return strings.TrimSuffix(fmt.Sprintf("%.1f", float64(n)/(1<<20)), ".0") + " MiB"
}
