package main

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"ubcache/cmd/ubvm/internal/recipe"
)

func kublkCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "kublk",
		Short: "Build the kernel's ublk test server and print its path, for --bin",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx := cmd.Context()
			m, err := openMachine(ctx, listAge)
			if err != nil {
				return err
			}
			defer m.close()
			file, err := m.kublk(ctx)
			if err != nil {
				return err
			}
			fmt.Fprintln(cmd.OutOrStdout(), file)
			return nil
		},
	}
}

func (m *machine) kublk(ctx context.Context) (string, error) {
	return recipe.BuildKublk(ctx, m.cache, m.apt, m.index)
}
