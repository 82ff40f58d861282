// What the memory server's process says of itself, as the agent takes it. Only the form.

import { z } from 'zod';

export const servedSchema = z.array(
  z.object({ snapshot: z.string(), layers: z.number().nonnegative() }),
);
