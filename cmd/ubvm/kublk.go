package main

import (
	"errors"

	"github.com/spf13/cobra"
)

func kublkCommand() *cobra.Command {
	return &cobra.Command{Use: "kublk", RunE: func(*cobra.Command, []string) error { return errors.New("todo") }}
}
